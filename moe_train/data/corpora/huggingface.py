"""Streams a data set from the Hugging Face hub, or reads one in a folder (JSON lines, Parquet, CSV, text).

Data from the hub is kept as text in the cache, so a resumed run needs no network; a folder is read each time, so that
changed files are noticed.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from moe_train.config.kinds.data import HuggingFaceCorpusConfig
from moe_train.data.cache import Facts, obtain
from moe_train.data.corpora.corpus import Document, Progress
from moe_train.data.corpora.folder import EVERYTHING, expanded_path, find_files
from moe_train.data.corpora.left_out import LeftOut
from moe_train.data.corpora.store import read_documents, write_documents
from moe_train.errors import DataError

DOCUMENTS_PER_REPORT = 10_000
DESCRIPTIONS = frozenset({"README.md", "dataset_infos.json", ".gitattributes"})
"""Files of a data set's folder that contain none of its rows."""


class HuggingFaceCorpus:
    """Makes each row with text a document, named by the row's number."""

    def __init__(self, config: HuggingFaceCorpusConfig) -> None:
        self._config = config

    def documents(self, cache_dir: Path, progress: Progress) -> Iterator[Document]:
        """Yields the rows in the data set's order, up to `max_documents`.

        Raises DataError if `datasets` is not installed, the data set cannot be reached or read, or has no
        such text field.
        """
        left_out = LeftOut()
        if expanded_path(self._config.path).is_dir():
            yield from self._stream(progress, left_out)
            left_out.report(progress)
            return
        settings = asdict(self._config)
        key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]
        folder = cache_dir / "huggingface" / key

        def fetch(unfinished: Path) -> Facts:
            progress(f"downloading {self._config.path} from the Hugging Face hub")
            count = write_documents(unfinished, self._stream(progress, left_out))
            return {**settings, "documents": count, "left_out": left_out.as_dict()}

        facts = obtain(folder, fetch, progress)
        yield from read_documents(folder)
        LeftOut(facts.get("left_out")).report(progress)

    def _stream(self, progress: Progress, left_out: LeftOut) -> Iterator[Document]:
        for number, row in enumerate(islice(self._rows(left_out), self._config.max_documents)):
            text = row.get(self._config.text_field)
            if not isinstance(text, str):
                fields = ", ".join(name for name, value in row.items() if isinstance(value, str))
                raise DataError(
                    f"data.corpus.text_field={self._config.text_field}: must be a text field, which row {number} of "
                    f"{self._config.path} does not have; its text fields are: {fields or 'none'}"
                )
            if text.strip():
                yield Document(f"{number:09d}", text)
            else:
                left_out.add("rows without text", f"row {number}")
            if (number + 1) % DOCUMENTS_PER_REPORT == 0:
                progress(f"read {number + 1} rows of {self._config.path}")

    def _rows(self, left_out: LeftOut) -> Iterator[dict[str, Any]]:
        try:
            import datasets
        except ImportError:
            raise DataError(
                "data.corpus.kind=huggingface: needs the package datasets, which is not installed; "
                "run pip install 'moe-train[huggingface]', or use data.corpus.kind=files"
            ) from None
        path = expanded_path(self._config.path)
        source = str(path) if path.is_dir() else self._config.path
        try:
            builder = datasets.load_dataset_builder(source, self._config.name)
            if path.is_dir():
                _count_unread(path, builder.config.data_files or {}, left_out)
            yield from builder.as_streaming_dataset(split=self._config.split)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise DataError(
                f"data.corpus.path={self._config.path}: cannot be read as a data set with "
                f"name={self._config.name} and split={self._config.split} ({' '.join(str(error).split())}); "
                "check these three keys and, unless it is a local folder, the network"
            ) from None


def _count_unread(folder: Path, data_files: Mapping[str, Sequence[str]], left_out: LeftOut) -> None:
    """Counts the files of a folder that `datasets` assigns to no split.

    It follows no linked folders, reads one format, and ignores other files if some are named after a split, such as
    test.txt.
    """
    used = {str(file) for files in data_files.values() for file in files}
    for _, path in sorted(find_files(folder.absolute(), EVERYTHING, left_out)):
        if str(path) not in used and path.name not in DESCRIPTIONS:
            left_out.add("files that `datasets` assigns to no split, such as those in linked folders", path)
