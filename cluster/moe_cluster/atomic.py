"""Writes files atomically and durably, and checks for room on a disk."""

import os
import shutil
import stat
from pathlib import Path

NO_ROOM_BYTES = 64 * 1024


def replace_text(path: Path, text: str, durable: bool = False) -> None:
    """Replace `path` by a text in UTF-8: see `replace_content`."""
    replace_content(path, text.encode(), durable)


def replace_content(path: Path, content: bytes, durable: bool = False) -> None:
    """Replace `path` by `content`: a crash leaves the old content or the new, never a part.

    `durable`: the content is on the disk on return; its name is once the folder is (`make_durable`).
    A device is written into: to put a file in the place of /dev/null would harm the whole machine.
    Raises OSError that names `path`; its old content is left then.
    """
    if _is_device(path):
        path.write_bytes(content)
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        error.filename = str(path)  # a write to a full disk names no file, an open the temporary one
        temporary.unlink(missing_ok=True)
        raise


def _is_device(path: Path) -> bool:
    try:
        mode = path.lstat().st_mode
    except OSError:
        return False
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


def make_durable(path: Path) -> None:
    """Make a file's content, or the names in a directory, survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def has_no_room(folder: Path) -> bool:
    """Returns whether the disk under `folder` has no room for a small file."""
    return shutil.disk_usage(folder).free < NO_ROOM_BYTES
