"""Reads a folder of translations: files in two languages with one sentence per line, and gettext catalogues."""

from collections.abc import Iterator
from itertools import chain, zip_longest
from pathlib import Path

from moe_train.config.kinds.parallel_corpus import ParallelFilesCorpusConfig
from moe_train.data.corpora.catalogues import find_catalogues, read_catalogue
from moe_train.data.corpora.corpus import Document, Progress
from moe_train.data.corpora.folder import EVERYTHING, expanded_path, find_files, searching
from moe_train.data.corpora.left_out import LeftOut
from moe_train.data.corpora.lines import lines_of
from moe_train.data.corpora.pairs import Pair, select, swapped, write_pairs
from moe_train.errors import DataError, dangling_link

CARRIAGE_RETURNS = "; a carriage return alone does not end a line: convert such a file with tr '\\r' '\\n'"


class ParallelFilesCorpus:
    """Makes each pair of files NAME.SOURCE and NAME.TARGET, and each catalogue, a document named by its path.

    Catalogues are assumed to have English messages, so they are used only if one of the languages is `en`.
    """

    def __init__(self, config: ParallelFilesCorpusConfig) -> None:
        self._config = config

    def documents(self, cache_dir: Path, progress: Progress) -> Iterator[Document]:
        """Yields the files sorted by name, then the catalogues, and reports to `progress` what is left out.

        Raises DataError for a missing folder, two files with different numbers of lines, a file that cannot be read,
        and a folder without pairs.
        """
        require_exists(self._config)
        root = expanded_path(self._config.path)
        left_out, is_empty = LeftOut(), True
        texts = chain(self._aligned(root, left_out), self._catalogues(root, left_out))
        for document in select(texts, self._config.min_words, left_out):
            is_empty = False
            yield document
        left_out.report(progress)
        if is_empty:
            config = self._config
            raise DataError(
                f"data.corpus.path={config.path}: holds no pairs of {config.source_language} and "
                f"{config.target_language} with data.corpus.min_words={config.min_words}; it needs files "
                f"NAME.{config.source_language} and NAME.{config.target_language}, or catalogues such as "
                f"{config.target_language}.po"
            )

    def _aligned(self, root: Path, left_out: LeftOut) -> Iterator[Document]:
        source, target = f".{self._config.source_language}", f".{self._config.target_language}"
        files = find_files(root, EVERYTHING, left_out, lambda name: Path(name).suffix in (source, target))
        paths = sorted(path for _, path in files)
        existing = set(paths)
        for path in paths:
            other = path.with_suffix(target if path.suffix == source else source)
            if other not in existing:
                left_out.add("files without their translation beside them", path)
            elif path.suffix == source:
                pairs = list(align_lines(path, other))
                if num_blank := sum(bool(pair.source.strip()) != bool(pair.target.strip()) for pair in pairs):
                    left_out.add("lines whose translation is blank", path, num_blank)
                yield Document(path.relative_to(root).with_suffix("").as_posix(), write_pairs(pairs))

    def _catalogues(self, root: Path, left_out: LeftOut) -> Iterator[Document]:
        languages = {self._config.source_language, self._config.target_language}
        if "en" in languages:
            (foreign,) = languages - {"en"}
            for path in find_catalogues(root, foreign, LeftOut()):  # links are counted in `_aligned`
                document = Document(path.relative_to(root).as_posix(), write_pairs(read_catalogue(path)))
                yield swapped(document) if self._config.target_language == "en" else document


def require_exists(config: ParallelFilesCorpusConfig) -> None:
    """Raises DataError if there is no folder at the corpus's path."""
    path = expanded_path(config.path)
    with searching(config.path):
        if not path.is_dir():
            raise DataError(
                f"data.corpus.path={config.path}: {dangling_link(path) or 'there is no such folder'}; correct the "
                "path (relative to the working directory)"
            )


def align_lines(source: Path, target: Path) -> Iterator[Pair]:
    """Pairs line n of one file with line n of the other, ignoring surplus blank lines at the end of one.

    Raises DataError if a line with text has no counterpart, and for a file that is not UTF-8 text.
    """
    lines = [_lines(side) for side in (source, target)]
    counts = [len(side) for side in lines]
    if any(line.strip() for side in lines for line in side[min(counts) :]):
        hint = CARRIAGE_RETURNS if any("\r" in side[0] for side in lines if len(side) == 1) else ""
        raise DataError(
            f"data.corpus.path: {source} has {counts[0]} lines and {target.name} has {counts[1]}; "
            f"line n of one must translate line n of the other{hint}"
        )
    yield from (Pair(*sides) for sides in zip_longest(*lines, fillvalue=""))


def _lines(path: Path) -> list[str]:
    try:
        return lines_of(path.read_bytes())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"data.corpus.path: {path} cannot be read as UTF-8 text ({error}); repair it or move it out of the corpus"
        ) from None
