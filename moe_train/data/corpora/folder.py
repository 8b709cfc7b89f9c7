"""Finds the files of a corpus in a folder or by a glob, and alone decides about links and special files.

Links are followed, but no link adds text that the corpus already has: a folder or file that several paths lead to is
read once, under the path with the fewest links and among these the first by name; a link back to a folder above it is
not followed. So the same text is on only one side of the split, and cycles of links end.
"""

import glob
import heapq
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import NamedTuple

from moe_train.data.corpora.left_out import LeftOut
from moe_train.errors import DataError, dangling_link

EVERYTHING = ("**", "*")
"""The parts of a pattern that matches all files below a folder, at any depth."""

Parts = tuple[str, ...]


class File(NamedTuple):
    """Names a regular file below the searched folder."""

    num_links: int
    """Number of links on its path."""
    path: Path


class _Folder(NamedTuple):
    """Names a folder still to be searched; folders are searched in the order of these tuples."""

    num_links: int
    path: Path
    parts: Parts


def find_files(
    root: Path,
    parts: Parts,
    left_out: LeftOut,
    is_wanted: Callable[[str], bool] = lambda name: True,
    unwanted: str | None = None,
    skip_folders: frozenset[str] = frozenset(),
) -> Iterator[File]:
    """Yields, in no particular order, the regular files below `root` that match a glob's `parts` and `is_wanted`.

    Only folders are opened. `left_out` counts what is skipped: special files, folders reached again and, under the
    label `unwanted` unless that is None, files with other names. Folders named in `skip_folders` are not entered.
    Raises DataError for a folder or a wanted file whose status cannot be read.
    """
    first_paths: dict[tuple[int, int, Parts], Path] = {}
    queue = [_Folder(0, root, _collapsed(parts))]
    while queue:
        folder = heapq.heappop(queue)
        first = first_paths.setdefault((*_identity(folder.path), folder.parts), folder.path)
        if first != folder.path:
            left_out.add("linked folders that are read under another path", f"{folder.path}, read as {first}")
            continue
        for entry in _entries(folder.path):
            rests = {
                rest for state in _states(folder.parts) if (rest := _rest(entry.name, state)) is not None
            }
            num_links = folder.num_links + entry.is_symlink()
            if not _is_folder(entry):
                is_match = () in rests and _is_regular_file(entry, is_wanted(entry.name), unwanted, left_out)
                if is_match:
                    yield File(num_links, Path(entry.path))
            elif entry.is_symlink() and _leads_back(entry):
                left_out.add("links that lead back to a folder above them", entry.path)
            elif entry.name not in skip_folders:
                for rest in rests - {()}:
                    heapq.heappush(queue, _Folder(num_links, Path(entry.path), rest))
                if () in rests and "**" not in parts:
                    left_out.add("folders that match the glob, whose files /** would include", entry.path)


def distinct(files: Iterable[File], left_out: LeftOut) -> list[Path]:
    """Returns the paths of `files`, without links to files that are among them under another name."""
    real_folder = cache(os.path.realpath)
    paths: dict[str, Path] = {}
    for num_links, path in sorted(files):
        real = os.path.realpath(path) if num_links else os.path.join(real_folder(path.parent), path.name)
        if (first := paths.setdefault(real, path)) != path:
            left_out.add("links to files that are read under another name", f"{path}, read as {first}")
    return list(paths.values())


def expanded_path(path: str) -> Path:
    """Returns the path of a recipe's folder, file or glob with `~` expanded.

    Raises DataError if there is no home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise DataError(
            f"data.corpus.path={path}: there is no such home folder (HOME={os.environ.get('HOME', '')}); "
            "write the path without ~, or set HOME"
        ) from None


def split_glob(pattern: Path) -> tuple[Path, Parts]:
    """Splits a glob into the folders before its first wildcard and the parts from there on."""
    number = next((n for n, part in enumerate(pattern.parts) if glob.has_magic(part)), len(pattern.parts))
    return Path(*pattern.parts[:number]), pattern.parts[number:]


@contextmanager
def searching(path: str | None) -> Iterator[None]:
    """Turns an OSError on the corpus's own path into a DataError: its name is too long, or a folder is closed."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"data.corpus.path={path}: cannot be read ({error.strerror}); correct the path, or its permissions"
        ) from None


def unreadable(path: str | Path, error: OSError) -> DataError:
    """Returns the error for a file or folder of a corpus that cannot be read."""
    if link := dangling_link(Path(path)):
        return DataError(f"data.corpus.path: {link}; correct or remove the link, or restore its target")
    return DataError(
        f"data.corpus.path: {path} cannot be read ({error.strerror}); "
        "correct its permissions or move it out of the corpus"
    )


def _entries(folder: Path) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise unreadable(folder, error) from None


def _identity(folder: Path) -> tuple[int, int]:
    try:
        status = folder.stat()
    except OSError as error:
        raise unreadable(folder, error) from None
    return status.st_dev, status.st_ino


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a cycle of links, or a link into a folder without permission
        return False


def _leads_back(link: "os.DirEntry[str]") -> bool:
    """Returns whether a link leads to a folder that contains it, at any depth."""
    return Path(os.path.realpath(os.path.dirname(link.path))).is_relative_to(os.path.realpath(link.path))


def _is_regular_file(
    entry: "os.DirEntry[str]", is_wanted: bool, unwanted: str | None, left_out: LeftOut
) -> bool:
    """Returns whether a matching entry is a file to read, without opening it.

    Opening a pipe would block, and opening a device might have side effects.
    """
    try:
        is_regular = stat.S_ISREG(entry.stat().st_mode)
    except OSError as error:
        if is_wanted:
            raise unreadable(entry.path, error) from None
        left_out.add("dangling links", entry.path)  # the missing target may have been a folder of texts
        return False
    if is_wanted and not is_regular:
        left_out.add("pipes, sockets and devices, which are not regular files", entry.path)
    if not is_wanted and is_regular and unwanted is not None:
        left_out.add(unwanted, entry.path)
    return is_wanted and is_regular


def _collapsed(parts: Parts) -> Parts:
    """Reduces `**/**` to `**`, and lets a `**` at the end match files at any depth."""
    reduced = tuple(part for n, part in enumerate(parts) if part != "**" or parts[n - 1 : n] != ("**",))
    return (*reduced, "*") if reduced[-1:] == ("**",) else reduced


def _states(parts: Parts) -> tuple[Parts, ...]:
    """Returns the patterns that names in a folder may match: `**` stands for any number of folders, including none."""
    return (parts, parts[1:]) if parts[0] == "**" else (parts,)


def _rest(name: str, parts: Parts) -> Parts | None:
    """Returns the rest of a pattern after `name` has matched its first part; None if it does not match."""
    if parts[0] == "**":
        return parts
    return parts[1:] if fnmatchcase(name, parts[0]) else None
