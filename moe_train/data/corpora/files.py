"""Text files: a folder, a glob, one file, or the running Python's own standard library.

The standard library without its tests is real text, about 12 MB, and on every machine that runs this code.
"""

import glob
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from moe_train.config.kinds.data import FilesCorpusConfig
from moe_train.data.corpora.corpus import Document, Progress
from moe_train.data.corpora.folder import EVERYTHING, distinct, find_files, given_path, split_glob, unreadable
from moe_train.data.corpora.left_out import LeftOut
from moe_train.errors import DataError, dangling_link

NOT_LIBRARY = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})
"""Folders of a Python installation that hold tests, other people's packages or compiled code."""
OTHER_SUFFIX = "files whose suffix is not in data.corpus.suffixes"


class FilesCorpus:
    """Every file is a document, named by its path relative to the folder; files without any text are none."""

    def __init__(self, config: FilesCorpusConfig) -> None:
        self._config = config

    def documents(self, cache_dir: Path, progress: Progress) -> Iterator[Document]:
        """The files in the order of their relative names; what is left out is reported to `progress` with its reason.

        Raises DataError for a path that is not there, a file or folder that cannot be read, and a corpus without
        text.
        """
        left_out = LeftOut()
        root, paths = self._find(left_out)
        num_documents = 0
        for name, path in sorted((_relative(path, root), path) for path in paths):
            try:
                text = path.read_bytes().decode("utf-8")
            except UnicodeDecodeError:
                left_out.add("files that are not UTF-8", path)
                continue
            except OSError as error:
                raise unreadable(path, error) from None
            if text.strip():
                num_documents += 1
                yield Document(name, text)
            elif (
                self._config.path is not None
            ):  # the library's empty files are no text that anybody could miss
                left_out.add("files without text", path)
        left_out.report(progress)
        if not num_documents:
            raise DataError(_without_text(self._config, len(paths)))

    def _find(self, left_out: LeftOut) -> tuple[Path, list[Path]]:
        """The folder that names are relative to, and the files."""
        if self._config.path is None:
            library = Path(sysconfig.get_paths()["stdlib"])
            found = find_files(
                library, EVERYTHING, left_out, lambda name: name.endswith(".py"), skip_folders=NOT_LIBRARY
            )
            return library, distinct(found, left_out)
        require_there(self._config)
        given = given_path(self._config.path)
        if given.is_dir():
            suffixes = tuple(self._config.suffixes)
            found = find_files(
                given, EVERYTHING, left_out, lambda name: name.endswith(suffixes), OTHER_SUFFIX
            )
            return given, distinct(found, left_out)
        if _is_glob(given):
            root, parts = split_glob(given)
            return root, distinct(find_files(root, parts, left_out), left_out)
        return given.parent, [given]


def require_there(config: FilesCorpusConfig) -> None:
    """Raise DataError if no file or folder is where the corpus should be. Reads no file, so it takes no time."""
    given = given_path(config.path or ".")
    if _is_glob(given):
        root, parts = split_glob(given)
        if not root.is_dir() or next(find_files(root, parts, LeftOut()), None) is None:
            raise DataError(_without_text(config, 0))
    elif not given.exists():
        raise DataError(
            f"data.corpus.path={config.path}: {dangling_link(given) or 'there is no such file or folder'}; correct "
            "the path (which is relative to the working directory), or leave it out for Python's standard library"
        )
    elif not (given.is_dir() or given.is_file()):
        raise DataError(
            f"data.corpus.path={config.path}: is a pipe, a socket or a device, and a corpus is read several times; "
            "write its text to a folder of files and name that"
        )


def _is_glob(given: Path) -> bool:
    return glob.has_magic(str(given)) and not given.exists()


def _without_text(config: FilesCorpusConfig, num_files: int) -> str:
    if config.path and _is_glob(given_path(config.path)):
        rule, way_out = "", "a glob names files of UTF-8 text; with /**/* at its end it reaches into folders"
    else:
        rule = f", with data.corpus.suffixes={','.join(config.suffixes)} in a folder"
        way_out = "name a folder with UTF-8 text files, or add their suffix"
    return f"data.corpus.path={config.path}: holds no text ({num_files} files match{rule}); {way_out}"


def _relative(path: Path, root: Path) -> str:
    """The path below `root` with forward slashes; bytes that are not UTF-8 are spelt out."""
    return path.relative_to(root).as_posix().encode("utf-8", "backslashreplace").decode("utf-8")
