"""Stores downloaded documents on disk as JSON lines, so that a source needs the network only once.

The file is in a cache entry (`data/cache.py`), which guards against incomplete and damaged content.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from moe_train.data.corpora.corpus import Document

FILE_NAME = "documents.jsonl"


def write_documents(folder: Path, documents: Iterable[Document]) -> int:
    """Writes `documents` to a file in `folder` and returns their number."""
    count = 0
    with (folder / FILE_NAME).open("w", encoding="utf-8") as file:
        for document in documents:
            file.write(json.dumps([document.name, document.text]) + "\n")
            count += 1
    return count


def read_documents(folder: Path) -> Iterator[Document]:
    """Yields the documents that `write_documents` wrote to `folder`, in their order."""
    with (folder / FILE_NAME).open(encoding="utf-8") as file:
        for line in file:
            name, text = json.loads(line)
            yield Document(name, text)
