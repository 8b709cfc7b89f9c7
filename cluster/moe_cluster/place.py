"""Records where a folder stands, in the folder, and so tells it from a copy of it."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Place:
    """A folder by its path and by its number in its file system.

    A folder that is moved within a file system keeps its number, and one that another host mounts elsewhere does too;
    a copy has neither.
    """

    path: str
    """Absolute, without links."""
    inode: int

    @classmethod
    def of(cls, folder: Path) -> "Place":
        """The place of `folder`. Raises OSError if it is not there."""
        return cls(str(folder.resolve()), folder.stat().st_ino)

    def is_of(self, folder: Path) -> bool:
        """Whether this is the place of `folder`. Raises OSError if that is not there."""
        return str(folder.resolve()) == self.path or folder.stat().st_ino == self.inode
