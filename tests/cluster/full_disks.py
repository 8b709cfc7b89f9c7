"""Small disks that tests fill: one that all nodes of a cluster share, as a run's folder lies on one."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class SharedDisk:
    """A file system of a few MiB. Nodes that are namespaces see it if they boot while it is mounted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    def fill(self) -> None:
        """Leave no room."""
        with self._filler.open("ab", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                return

    def free(self) -> None:
        """Take away what filled it."""
        self._filler.unlink(missing_ok=True)


@contextmanager
def shared_disk(folder: Path, mebibytes: int) -> Iterator[SharedDisk]:
    """Mount one at a folder that is there, for as long as the block lasts."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)], check=True)
    try:
        yield SharedDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
