"""Reads text files: a folder, a glob, one file, or the running Python's own standard library.

The standard library without its tests is about 12 MB of real text that every machine running this code has.
"""

import glob
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from moe_train.config.kinds.data import FilesCorpusConfig
from moe_train.data.corpora.corpus import Document, Progress
from moe_train.data.corpora.folder import (
    EVERYTHING,
    distinct,
    expanded_path,
    find_files,
    searching,
    split_glob,
    unreadable,
)
from moe_train.data.corpora.left_out import LeftOut
from moe_train.errors import DataError, dangling_link

NOT_LIBRARY = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})
"""Folders of a Python installation that hold tests, other people's packages or compiled code."""
OTHER_SUFFIX = "files whose suffix is not in data.corpus.suffixes"


class FilesCorpus:
    """Makes each file with text a document, named by its path relative to the folder."""

    def __init__(self, config: FilesCorpusConfig) -> None:
        self._config = config

    def documents(self, cache_dir: Path, progress: Progress) -> Iterator[Document]:
        """Yields the files sorted by relative name, and reports to `progress` what is left out and why.

        Raises DataError for a missing path, a file or folder that cannot be read, and a corpus without text.
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
            elif self._config.path is not None:  # nobody misses the standard library's empty files
                left_out.add("files without text", path)
        left_out.report(progress)
        if not num_documents:
            raise DataError(_without_text(self._config, len(paths)))

    def _find(self, left_out: LeftOut) -> tuple[Path, list[Path]]:
        """Returns the folder that document names are relative to, and the files."""
        if self._config.path is None:
            library = Path(sysconfig.get_paths()["stdlib"])
            modules = find_files(
                library, EVERYTHING, left_out, lambda name: name.endswith(".py"), skip_folders=NOT_LIBRARY
            )
            return library, distinct(modules, left_out)
        require_exists(self._config)
        path = expanded_path(self._config.path)
        if path.is_dir():
            suffixes = tuple(self._config.suffixes)
            texts = find_files(path, EVERYTHING, left_out, lambda name: name.endswith(suffixes), OTHER_SUFFIX)
            return path, distinct(texts, left_out)
        if _is_glob(path):
            root, parts = split_glob(path)
            return root, distinct(find_files(root, parts, left_out), left_out)
        return path.parent, [path]


def require_exists(config: FilesCorpusConfig) -> None:
    """Raises DataError if there is no file or folder at the corpus's path. Reads no file, so it takes no time."""
    with searching(config.path):
        path = expanded_path(config.path or ".")
        if _is_glob(path):
            root, parts = split_glob(path)
            if not root.is_dir() or next(find_files(root, parts, LeftOut()), None) is None:
                raise DataError(_without_text(config, 0))
        elif not path.exists():
            raise DataError(
                f"data.corpus.path={config.path}: {dangling_link(path) or 'there is no such file or folder'}; "
                "correct the path (relative to the working directory), or leave it out for Python's standard library"
            )
        elif not (path.is_dir() or path.is_file()):
            raise DataError(
                f"data.corpus.path={config.path}: must not be a pipe, a socket or a device, as a corpus is read "
                "several times; write its text to files in a folder and name the folder"
            )


def _is_glob(path: Path) -> bool:
    return glob.has_magic(str(path)) and not path.exists()


def _without_text(config: FilesCorpusConfig, num_files: int) -> str:
    if config.path and _is_glob(expanded_path(config.path)):
        rule, way_out = "", "a glob must match files of UTF-8 text; end it with /**/* to include subfolders"
    else:
        rule = f", with data.corpus.suffixes={','.join(config.suffixes)} in a folder"
        way_out = "name a folder with UTF-8 text files, or add their suffix"
    return f"data.corpus.path={config.path}: holds no text ({num_files} files match{rule}); {way_out}"


def _relative(path: Path, root: Path) -> str:
    """Returns the path relative to `root` with forward slashes; bytes that are not UTF-8 are escaped."""
    return path.relative_to(root).as_posix().encode("utf-8", "backslashreplace").decode("utf-8")
