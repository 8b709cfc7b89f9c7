"""Finds the files of a corpus in a folder or by a glob: the one place that decides about links and special files.

Links are followed, and no link adds text that the corpus has already: a folder or a file that several paths lead to is
read once, under the path with the fewest links, of these the first by name; a link that leads back to a folder above
it is not followed. So the same text is on one side of the split alone, and rings of links end.
"""

import glob
import heapq
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import NamedTuple

from moe_train.data.corpora.left_out import LeftOut
from moe_train.errors import DataError, dangling_link

EVERYTHING = ("**", "*")
"""The parts of a pattern that matches all files below a folder."""

Parts = tuple[str, ...]


class Found(NamedTuple):
    """A plain file below the folder that was searched."""

    num_links: int
    """How many links lead to it on its path."""
    path: Path


class _Folder(NamedTuple):
    """A folder still to be searched, in the order in which folders are."""

    num_links: int
    path: Path
    parts: Parts


def find_files(
    root: Path,
    parts: Parts,
    left_out: LeftOut,
    wanted: Callable[[str], bool] = lambda name: True,
    unwanted: str | None = None,
    skip_folders: frozenset[str] = frozenset(),
) -> Iterator[Found]:
    """The plain files below `root` that match a glob's `parts` and whose names are `wanted`, in no particular order.

    Nothing but folders is opened. What is passed over is counted in `left_out`: special files, folders reached again,
    and as `unwanted`, unless that is None, files with other names. Folders named in `skip_folders` are not entered.
    Raises DataError for a folder or a wanted file that cannot be looked at.
    """
    searched: dict[tuple[int, int, Parts], Path] = {}
    waiting = [_Folder(0, root, _collapsed(parts))]
    while waiting:
        folder = heapq.heappop(waiting)
        first = searched.setdefault((*_identity(folder.path), folder.parts), folder.path)
        if first != folder.path:
            left_out.add("linked folders that are read under another path", f"{folder.path}, read as {first}")
            continue
        for entry in _entries(folder.path):
            rests = {
                rest for state in _states(folder.parts) if (rest := _rest(entry.name, state)) is not None
            }
            num_links = folder.num_links + entry.is_symlink()
            if not _is_folder(entry):
                is_match = () in rests and _is_plain_file(entry, wanted(entry.name), unwanted, left_out)
                if is_match:
                    yield Found(num_links, Path(entry.path))
            elif entry.is_symlink() and _leads_back(entry):
                left_out.add("links that lead back to a folder above them", entry.path)
            elif entry.name not in skip_folders:
                for rest in rests - {()}:
                    heapq.heappush(waiting, _Folder(num_links, Path(entry.path), rest))
                if () in rests and "**" not in parts:
                    left_out.add("folders that match the glob, where /** would read their files", entry.path)


def distinct(found: Iterable[Found], left_out: LeftOut) -> list[Path]:
    """The paths of `found`, without links to files that are there under another name."""
    real_folder = cache(os.path.realpath)
    paths: dict[str, Path] = {}
    for num_links, path in sorted(found):
        real = os.path.realpath(path) if num_links else os.path.join(real_folder(path.parent), path.name)
        if (first := paths.setdefault(real, path)) != path:
            left_out.add("links to files that are read under another name", f"{path}, read as {first}")
    return list(paths.values())


def given_path(path: str) -> Path:
    """The folder, file or glob that a recipe names, `~` being the home folder. Raises DataError if there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise DataError(
            f"data.corpus.path={path}: there is no such home folder (HOME={os.environ.get('HOME', '')}); "
            "write the path without ~, or set HOME"
        ) from None


def split_glob(pattern: Path) -> tuple[Path, Parts]:
    """The folders of a glob before its first wildcard, and the parts from there on."""
    number = next((n for n, part in enumerate(pattern.parts) if glob.has_magic(part)), len(pattern.parts))
    return Path(*pattern.parts[:number]), pattern.parts[number:]


def unreadable(path: str | Path, error: OSError) -> DataError:
    """What to say of a file or folder of a corpus that cannot be read."""
    if link := dangling_link(Path(path)):
        return DataError(
            f"data.corpus.path: {link}; correct or remove the link, or bring back what it leads to"
        )
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
    except OSError:  # a ring of links, or a link into a folder without permission
        return False


def _leads_back(link: "os.DirEntry[str]") -> bool:
    """Whether a link leads to a folder that it lies in itself, however deep."""
    return Path(os.path.realpath(os.path.dirname(link.path))).is_relative_to(os.path.realpath(link.path))


def _is_plain_file(
    entry: "os.DirEntry[str]", is_wanted: bool, unwanted: str | None, left_out: LeftOut
) -> bool:
    """Whether an entry that matches is a file to read. It is not opened: a pipe would block, and a device might act."""
    try:
        is_plain = stat.S_ISREG(entry.stat().st_mode)
    except OSError as error:
        if is_wanted:
            raise unreadable(entry.path, error) from None
        left_out.add("links that lead nowhere", entry.path)  # perhaps to a folder of texts
        return False
    if is_wanted and not is_plain:
        left_out.add("pipes, sockets and devices, which are no plain files", entry.path)
    if not is_wanted and is_plain and unwanted is not None:
        left_out.add(unwanted, entry.path)
    return is_wanted and is_plain


def _collapsed(parts: Parts) -> Parts:
    """`**/**` is `**`, and a `**` at the end matches files at any depth."""
    kept = tuple(part for n, part in enumerate(parts) if part != "**" or parts[n - 1 : n] != ("**",))
    return (*kept, "*") if kept[-1:] == ("**",) else kept


def _states(parts: Parts) -> tuple[Parts, ...]:
    """The patterns that names in a folder may match: `**` stands for any number of folders, also none."""
    return (parts, parts[1:]) if parts[0] == "**" else (parts,)


def _rest(name: str, parts: Parts) -> Parts | None:
    """What is left of a pattern once `name` has matched its first part; None if it does not."""
    if parts[0] == "**":
        return parts
    return parts[1:] if fnmatchcase(name, parts[0]) else None
