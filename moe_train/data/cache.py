"""Keeps cache entries that are either complete or absent, and builds each once however many processes want it.

An entry is a folder whose `meta.json` gives the size and hash of every other file in it. It is filled under a temporary
name, synced and renamed, so a process killed at any moment leaves nothing that could be mistaken for an entry. A
damaged entry is rebuilt.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from moe_cluster.atomic import make_durable
from moe_train.errors import DataError, dangling_link

Facts = Mapping[str, Any]
"""What the builder of an entry records about it for later, as JSON-ready data."""

META = "meta.json"
UNFINISHED = ".building"


class DamagedEntryError(Exception):
    """Raised for an entry whose files do not match its meta.json."""


def cache_dir(override: str | None) -> Path:
    """Returns the cache's folder: `override` (the value of MOE_TRAIN_CACHE) or ~/.cache/moe-train.

    Raises DataError if the path needs a home folder and there is none.
    """
    try:
        return Path(override).expanduser().absolute() if override else Path.home() / ".cache" / "moe-train"
    except RuntimeError:  # HOME is not set and the user has no entry in the system, as in some containers
        raise DataError(
            f"MOE_TRAIN_CACHE={override or ''}: there is no such home folder (HOME={os.environ.get('HOME', '')}, user "
            f"{os.getuid()}); set MOE_TRAIN_CACHE or HOME to a writable folder"
        ) from None


def obtain(entry: Path, fill: Callable[[Path], Facts], progress: Callable[[str], None]) -> Facts:
    """Returns the facts of an intact entry; if there is none, `fill` writes its files into the folder it gets.

    Several processes may call this at once: one builds, the others report that they wait. An intact entry is read
    without writing anything, so a read-only cache works. Raises DataError if the cache cannot be written.
    """
    try:
        # Errors are found again under the lock, and reported there.
        with suppress(FileNotFoundError, DamagedEntryError):
            return verified(entry)
        entry.parent.mkdir(parents=True, exist_ok=True)
        with _locked(entry, progress):
            return _verified_or_built(entry, fill, progress)
    except OSError as error:
        why = dangling_link(entry) or error.strerror or error
        raise DataError(
            f"MOE_TRAIN_CACHE: the cache entry {entry} cannot be read or built ({why}); "
            "set MOE_TRAIN_CACHE to a writable folder with free space"
        ) from None


def verified(entry: Path) -> Facts:
    """Returns the facts of `entry` after checking all its files.

    Raises FileNotFoundError if there is no such entry, DamagedEntryError if a file is missing or altered.
    """
    try:
        meta = json.loads((entry / META).read_bytes())
        for name, expected in meta["files"].items():
            if not (entry / name).is_file():
                raise DamagedEntryError(f"{name} is missing")
            if (actual := _measure(entry / name)) != expected:
                raise DamagedEntryError(
                    f"{name} differs from what was written: {actual['bytes']} bytes now, {expected['bytes']} then"
                )
        return meta["facts"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DamagedEntryError(f"{META} is unreadable") from None


def _verified_or_built(entry: Path, fill: Callable[[Path], Facts], progress: Callable[[str], None]) -> Facts:
    """Returns the facts of `entry`, building it if needed; call under the lock.

    Another process may have built the entry meanwhile, and one that left something unfinished is dead.
    """
    for leftover in entry.parent.glob(f"{entry.name}{UNFINISHED}*"):
        shutil.rmtree(leftover)
    try:
        with suppress(FileNotFoundError):
            return verified(entry)
    except DamagedEntryError as damage:
        progress(f"the cache entry {entry} is damaged ({damage}); rebuilding it")
    unfinished = entry.with_name(f"{entry.name}{UNFINISHED}")
    unfinished.mkdir()
    try:
        facts = fill(unfinished)
        _seal(unfinished, facts)
        if entry.exists():
            entry.rename(entry.with_name(f"{entry.name}{UNFINISHED}-replaced"))
        unfinished.rename(entry)
        make_durable(entry.parent)
    finally:
        for leftover in entry.parent.glob(f"{entry.name}{UNFINISHED}*"):
            shutil.rmtree(leftover)
    return facts


def _seal(folder: Path, facts: Facts) -> None:
    """Writes meta.json and makes every file of `folder` durable."""
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    meta = {"files": {path.name: _measure(path) for path in paths}, "facts": facts}
    (folder / META).write_text(json.dumps(meta, indent=1) + "\n")
    for path in (*paths, folder / META, folder):
        make_durable(path)


def _measure(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


@contextmanager
def _locked(entry: Path, progress: Callable[[str], None]) -> Iterator[None]:
    """Holds the lock of `entry`; the kernel releases it when its holder dies, however it dies."""
    descriptor = os.open(entry.with_name(f"{entry.name}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"waiting for another process to build the cache entry {entry}")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
