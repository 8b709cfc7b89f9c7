"""The cache: entries that are whole or absent, built once however many processes ask for them.

An entry is a folder whose `meta.json` gives size and hash of every other file in it. It is filled beside its
place, synced and renamed, so that a kill at any moment leaves nothing that could be taken for an entry; a
damaged entry is built again.
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
"""What the builder of an entry wants to know of it later, as JSON-ready data."""

META = "meta.json"
UNFINISHED = ".building"


class DamagedEntryError(Exception):
    """An entry whose files are not those its meta.json speaks of."""


def cache_dir(override: str | None) -> Path:
    """The cache's folder: `override` (the value of MOE_TRAIN_CACHE) or ~/.cache/moe-train.

    Raises DataError if that is in a home folder and there is none.
    """
    try:
        return Path(override).expanduser().absolute() if override else Path.home() / ".cache" / "moe-train"
    except RuntimeError:  # HOME is not set, and the system does not know the user: so run containers
        raise DataError(
            f"MOE_TRAIN_CACHE={override or ''}: there is no such home folder (HOME={os.environ.get('HOME', '')}, user "
            f"{os.getuid()}); set MOE_TRAIN_CACHE, or HOME, to a folder that can be written"
        ) from None


def obtain(entry: Path, fill: Callable[[Path], Facts], progress: Callable[[str], None]) -> Facts:
    """The facts of a sound entry; if there is none, `fill` puts its files into the folder it is given.

    Several processes may call this at once: one builds, the others say that they wait. A sound entry is read
    without writing anything, so a read-only cache serves. Raises DataError if the cache cannot be written.
    """
    try:
        with suppress(FileNotFoundError, DamagedEntryError):  # looked at again under the lock, and said there
            return verified(entry)
        entry.parent.mkdir(parents=True, exist_ok=True)
        with _locked(entry, progress):
            return _verified_or_built(entry, fill, progress)
    except OSError as error:
        why = dangling_link(entry) or error.strerror or error
        raise DataError(
            f"MOE_TRAIN_CACHE: the cache entry {entry} cannot be read or built ({why}); "
            "set MOE_TRAIN_CACHE to a folder that can be written and has room"
        ) from None


def verified(entry: Path) -> Facts:
    """The facts of `entry`, all of whose files are checked.

    Raises FileNotFoundError if there is no such entry, DamagedEntryError if a file is missing or altered.
    """
    try:
        meta = json.loads((entry / META).read_bytes())
        for name, expected in meta["files"].items():
            if not (entry / name).is_file():
                raise DamagedEntryError(f"{name} is missing")
            if (found := _measure(entry / name)) != expected:
                raise DamagedEntryError(
                    f"{name} has {found['bytes']} bytes that are not the {expected['bytes']} written"
                )
        return meta["facts"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DamagedEntryError(f"{META} is not readable") from None


def _verified_or_built(entry: Path, fill: Callable[[Path], Facts], progress: Callable[[str], None]) -> Facts:
    """Under the lock: another may have built the entry, and whoever left something unfinished is dead."""
    for leftover in entry.parent.glob(f"{entry.name}{UNFINISHED}*"):
        shutil.rmtree(leftover)
    try:
        with suppress(FileNotFoundError):
            return verified(entry)
    except DamagedEntryError as damage:
        progress(f"the cache entry {entry} is damaged ({damage}) and is built again")
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
    """Write meta.json and make every file of `folder` durable."""
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
    """Hold the lock of `entry`; the kernel releases it when its holder dies, however it dies."""
    descriptor = os.open(entry.with_name(f"{entry.name}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"waiting for another process that builds the cache entry {entry}")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
