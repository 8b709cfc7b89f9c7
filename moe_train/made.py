"""Keeps account of the files and folders that a command makes, so that a refusal leaves none of them behind."""

import os
from contextlib import suppress
from pathlib import Path


class Made:
    """What was not there before."""

    def __init__(self) -> None:
        self._paths: list[Path] = []

    def expect(self, path: Path) -> None:
        """Note that `path`, with its parents, is about to be made, as far as it is not there yet."""
        missing = [each for each in (*reversed(path.parents), path) if not os.path.lexists(each)]
        self._paths += [each for each in missing if each not in self._paths]

    def take_back(self) -> None:
        """Remove what was noted, but no folder in which somebody else has put something."""
        for path in reversed(self._paths):
            with suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink()
        self._paths = []
