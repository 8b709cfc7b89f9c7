"""A folder of translations: files with a sentence a line, in two languages, and gettext catalogues."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from moe_train.config.kinds.parallel_corpus import ParallelFilesCorpusConfig
from moe_train.data.corpora.catalogues import find_catalogues, read_catalogue
from moe_train.data.corpora.corpus import Document, Progress
from moe_train.data.corpora.pairs import Pair, select, swapped, write_pairs
from moe_train.errors import DataError


class ParallelFilesCorpus:
    """A document is a pair of files NAME.SOURCE and NAME.TARGET, or a catalogue; named by its path in the folder.

    Messages of catalogues are taken to be English, so catalogues count only where one of the languages is `en`.
    """

    def __init__(self, config: ParallelFilesCorpusConfig) -> None:
        self._config = config

    def documents(self, cache_dir: Path, progress: Progress) -> Iterator[Document]:
        """The files in the order of their names, then the catalogues.

        Raises DataError for a folder that is not there, two files with different numbers of lines, a file that cannot
        be read, and a folder without pairs.
        """
        require_there(self._config)
        root = Path(self._config.path).expanduser()
        found = False
        for document in select(chain(self._aligned(root), self._catalogues(root)), self._config.min_words):
            found = True
            yield document
        if not found:
            config = self._config
            raise DataError(
                f"data.corpus.path={config.path}: holds no pairs of {config.source_language} and "
                f"{config.target_language} with data.corpus.min_words={config.min_words}; it needs files "
                f"NAME.{config.source_language} and NAME.{config.target_language}, or catalogues such as "
                f"{config.target_language}.po"
            )

    def _aligned(self, root: Path) -> Iterator[Document]:
        source, target = f".{self._config.source_language}", f".{self._config.target_language}"
        for path in sorted(path for path in root.rglob(f"*{source}") if path.with_suffix(target).is_file()):
            lines = [_lines(side) for side in (path, path.with_suffix(target))]
            if len(lines[0]) != len(lines[1]):
                raise DataError(
                    f"data.corpus.path: {path} has {len(lines[0])} lines and {path.with_suffix(target).name} has "
                    f"{len(lines[1])}; line n of one must translate line n of the other"
                )
            pairs = (Pair(*sides) for sides in zip(*lines, strict=True))
            yield Document(path.relative_to(root).with_suffix("").as_posix(), write_pairs(pairs))

    def _catalogues(self, root: Path) -> Iterator[Document]:
        languages = {self._config.source_language, self._config.target_language}
        if "en" in languages:
            (foreign,) = languages - {"en"}
            for path in find_catalogues(root, foreign):
                document = Document(path.relative_to(root).as_posix(), write_pairs(read_catalogue(path)))
                yield swapped(document) if self._config.target_language == "en" else document


def require_there(config: ParallelFilesCorpusConfig) -> None:
    """Raise DataError if there is no folder where the corpus should be."""
    if not Path(config.path).expanduser().is_dir():
        raise DataError(
            f"data.corpus.path={config.path}: there is no such folder; correct the path "
            "(which is relative to the working directory)"
        )


def _lines(path: Path) -> list[str]:
    try:
        return path.read_bytes().decode("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"data.corpus.path: {path} cannot be read as UTF-8 text ({error}); repair it or move it out of the corpus"
        ) from None
