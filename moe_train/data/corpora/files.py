"""Text files: a folder, a glob, one file, or the running Python's own standard library.

The standard library without its tests is real text, about 12 MB, and on every machine that runs this code.
"""

import glob
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from moe_train.config.kinds.data import FilesCorpusConfig
from moe_train.data.corpora.corpus import Document, Progress
from moe_train.errors import DataError

NOT_LIBRARY = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})
"""Folders of a Python installation that hold tests, other people's packages or compiled code."""


class FilesCorpus:
    """Every file is a document, named by its path relative to the folder; files without any text are none."""

    def __init__(self, config: FilesCorpusConfig) -> None:
        self._config = config

    def documents(self, cache_dir: Path, progress: Progress) -> Iterator[Document]:
        """The files in the order of their relative names.

        A file that is not UTF-8 is left out, and `progress` is told how many were. Raises DataError for a
        path that is not there, a file or folder that cannot be read, and a corpus without text.
        """
        root, paths = self._find()
        skipped: list[Path] = []
        found = 0
        for name, path in sorted((_relative(path, root), path) for path in paths):
            try:
                text = path.read_bytes().decode("utf-8")
            except UnicodeDecodeError:
                skipped.append(path)
                continue
            except OSError as error:
                raise _unreadable(path, error) from None
            if text.strip():
                found += 1
                yield Document(name, text)
        if skipped:
            progress(
                f"{len(skipped)} of {len(paths)} files are not UTF-8 and are left out; "
                f"the first is {skipped[0]}"
            )
        if not found:
            raise DataError(_without_text(self._config, len(paths)))

    def _find(self) -> tuple[Path, list[Path]]:
        """The folder that names are relative to, and the files."""
        if self._config.path is None:
            library = Path(sysconfig.get_paths()["stdlib"])
            return library, list(_walk(library, (".py",), NOT_LIBRARY))
        require_there(self._config)
        given = Path(self._config.path).expanduser()
        if given.is_dir():
            return given, list(_walk(given, tuple(self._config.suffixes), frozenset()))
        if _is_glob(given):
            matches = {Path(match) for match in _matches(given)}
            return _fixed_part(given), [match for match in matches if not match.is_dir()]
        return given.parent, [given]


def require_there(config: FilesCorpusConfig) -> None:
    """Raise DataError if no file or folder is where the corpus should be. Reads no file, so it takes no time."""
    given = Path(config.path or ".").expanduser()
    if _is_glob(given):
        if next(_matches(given), None) is None:
            raise DataError(_without_text(config, 0))
    elif not given.exists():
        raise DataError(
            f"data.corpus.path={config.path}: there is no such file or folder; correct the path "
            "(which is relative to the working directory), or leave it out for Python's standard library"
        )


def _is_glob(given: Path) -> bool:
    return glob.has_magic(str(given)) and not given.exists()


def _matches(given: Path) -> Iterator[str]:
    return glob.iglob(str(given), recursive=True, include_hidden=True)


def _without_text(config: FilesCorpusConfig, num_files: int) -> str:
    return (
        f"data.corpus.path={config.path}: holds no text ({num_files} files match, with "
        f"data.corpus.suffixes={','.join(config.suffixes)} in a folder); "
        "name a folder with UTF-8 text files, or add their suffix"
    )


def _walk(root: Path, suffixes: tuple[str, ...], leave_out: frozenset[str]) -> Iterator[Path]:
    """Files below `root` that end in one of `suffixes`, without going into folders named in `leave_out`."""

    def unreadable(error: OSError) -> None:
        raise _unreadable(error.filename, error)

    for folder, subfolders, names in os.walk(root, onerror=unreadable):
        subfolders[:] = [name for name in subfolders if name not in leave_out]
        yield from (Path(folder, name) for name in names if name.endswith(suffixes))


def _fixed_part(pattern: Path) -> Path:
    """The folders of a glob before its first wildcard."""
    fixed = Path(*(part for part in pattern.parts[:1] if not glob.has_magic(part)))
    for part in pattern.parts[1:]:
        if glob.has_magic(part) or glob.has_magic(str(fixed)):
            break
        fixed /= part
    return fixed


def _relative(path: Path, root: Path) -> str:
    """The path below `root` with forward slashes; bytes that are not UTF-8 are spelt out."""
    return path.relative_to(root).as_posix().encode("utf-8", "backslashreplace").decode("utf-8")


def _unreadable(path: Path | str, error: OSError) -> DataError:
    return DataError(
        f"data.corpus.path: {path} cannot be read ({error.strerror}); "
        "correct its permissions or move it out of the corpus"
    )
