"""Records the files and folders that a command creates, so that a refused command leaves none of them behind."""

import os
from contextlib import suppress
from pathlib import Path


class Made:
    """Lists paths that did not exist before."""

    def __init__(self) -> None:
        self._paths: list[Path] = []

    def expect(self, path: Path) -> None:
        """Record that `path` and its missing parents are about to be created."""
        missing = [each for each in (*reversed(path.parents), path) if not os.path.lexists(each)]
        self._paths += [each for each in missing if each not in self._paths]

    def take_back(self) -> None:
        """Remove the recorded paths, except folders that hold files of somebody else."""
        for path in reversed(self._paths):
            with suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink()
        self._paths = []
