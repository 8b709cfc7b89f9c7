"""Records a folder's own place, to distinguish it from a copy."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Place:
    """Identifies a folder by its path and by its inode.

    A folder that is moved within a file system, or mounted elsewhere by another host, keeps its inode; a copy has
    neither path nor inode.
    """

    path: str
    """Absolute, without links."""
    inode: int

    @classmethod
    def of(cls, folder: Path) -> "Place":
        """Returns the place of `folder`. Raises OSError if it does not exist."""
        return cls(str(folder.resolve()), folder.stat().st_ino)

    def is_of(self, folder: Path) -> bool:
        """Returns whether this is the place of `folder`. Raises OSError if that does not exist."""
        return str(folder.resolve()) == self.path or folder.stat().st_ino == self.inode
