"""Files that are there as a whole or not at all: text replaced in one step, what survives a power failure, and whether
there is room for one."""

import os
import shutil
from pathlib import Path

NO_ROOM_BYTES = 64 * 1024


def replace_text(path: Path, text: str, durable: bool = False) -> None:
    """Make `text` the content of `path`; `durable`: it is on the disk on return. Raises OSError that names `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w") as file:
            file.write(text)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        error.filename = str(path)  # a write to a full disk names no file, an open the temporary one
        temporary.unlink(missing_ok=True)
        raise


def make_durable(path: Path) -> None:
    """Make a file's content, or the names in a directory, survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def has_no_room(folder: Path) -> bool:
    """Whether the disk under `folder` hardly takes a small file any more."""
    return shutil.disk_usage(folder).free < NO_ROOM_BYTES
