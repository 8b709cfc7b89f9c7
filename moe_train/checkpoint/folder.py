"""Names, lists and durably writes what is in the folder of a run's checkpoints.

    checkpoints/step_00000100/                 committed: complete, hashed, never changed again
    checkpoints/step_00000100.tmp-2/           being written by attempt 2
    checkpoints/step_00000100.fenced-1/        committed by attempt 1 after it was superseded, moved aside
    checkpoints/step_00000100.abandoned-1/     committed by attempt 1, which then rolled back to an earlier step
    checkpoints/step_00000100.deleted-2/       being removed
    checkpoints/step_00000100.failed-2         why a save of attempt 2 failed, for the other ranks
    checkpoints/latest                         name of the newest committed one, for people and scripts

Only the first form is ever loaded. Nothing here reads a tensor.
"""

import errno
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from moe_cluster.atomic import make_durable, replace_content
from moe_train.errors import CheckpointError

COMMITTED = re.compile(r"step_(\d{8,})")
LEFTOVER = re.compile(r"step_(\d{8,})\.(tmp|fenced|abandoned|deleted|failed)-(\w+)(-\d+)?")
REMOVAL_TRIES = 20


@dataclass(frozen=True)
class Leftover:
    """Describes an entry beside the committed checkpoints."""

    path: Path
    step: int
    kind: str
    """tmp, fenced, abandoned, deleted or failed."""
    attempt: int | None
    """None if its writer is unknown."""


@dataclass(frozen=True)
class CheckpointFolder:
    """Gives the paths of checkpoints below `run_dir`."""

    run_dir: Path

    @property
    def root(self) -> Path:
        """Returns the folder that holds all checkpoints of the run."""
        return self.run_dir / "checkpoints"

    @property
    def latest(self) -> Path:
        """Returns the path of the text file that names the newest committed checkpoint."""
        return self.root / "latest"

    def committed(self, step: int) -> Path:
        """Returns the path of the checkpoint of `step` once it is committed."""
        return self.root / f"step_{step:08d}"

    def temporary(self, step: int, attempt: int) -> Path:
        """Returns the path where `attempt` writes `step` until it is committed."""
        return self.root / f"step_{step:08d}.tmp-{attempt}"

    def failure_note(self, step: int, attempt: int) -> Path:
        """Returns the path where rank 0 reports that the save of `step` failed."""
        return self.root / f"step_{step:08d}.failed-{attempt}"

    def steps(self) -> list[int]:
        """Returns the steps of all committed checkpoints, ascending, by any attempt. Raises CheckpointError."""
        return sorted(int(match[1]) for path in self._entries() if (match := COMMITTED.fullmatch(path.name)))

    def leftovers(self) -> list[Leftover]:
        """Returns everything unfinished, fenced or partly removed, by name."""
        entries = []
        for path in sorted(self._entries()):
            if match := LEFTOVER.fullmatch(path.name):
                attempt = int(match[3]) if match[3].isdigit() else None
                entries.append(Leftover(path, int(match[1]), match[2], attempt))
        return entries

    def _entries(self) -> list[Path]:
        try:
            return list(self.root.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CheckpointError(
                f"{self.root}: cannot be listed ({error.strerror}); check its permissions"
            ) from None


def write_durably(path: Path, content: bytes) -> None:
    """Replaces the content of `path`; content and name are on the disk on return."""
    replace_content(path, content, durable=True)
    make_durable(path.parent)


def set_aside(path: Path, suffix: str) -> Path:
    """Renames a checkpoint to `NAME.suffix` (if that exists: `NAME.suffix-2`, ...) and returns the new path."""
    target, copies = path.with_name(f"{path.name}.{suffix}"), 1
    while target.exists():
        copies += 1
        target = path.with_name(f"{path.name}.{suffix}-{copies}")
    os.rename(path, target)
    return target


def remove(path: Path) -> None:
    """Removes a checkpoint or a leftover; a kill meanwhile leaves nothing partial under a committed name."""
    try:
        if COMMITTED.fullmatch(path.name):
            path = set_aside(path, "deleted-0")
        if path.is_dir() and not path.is_symlink():
            _remove_tree(path)
        else:
            path.unlink()  # removes a link, not its target, which is not ours
    except FileNotFoundError:
        return  # another process removed it


def _remove_tree(path: Path) -> None:
    """Removes a folder in which other processes may still create and remove files."""
    for _ in range(REMOVAL_TRIES):
        try:
            return shutil.rmtree(path)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY) or not path.exists():
                raise
    shutil.rmtree(path)


def explain(error: OSError, doing: str, path: Path) -> CheckpointError:
    """Returns the error for an OSError at `path`, with its cause and the way out."""
    place = error.filename or path
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CheckpointError(
            f"{place}: the disk is full ({_free_bytes(path)} bytes free) while {doing}; earlier "
            "checkpoints are intact: free space, or lower checkpoint.keep_last, and resume"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return CheckpointError(
            f"{place}: is not writable ({error.strerror}) while {doing}; make it writable, or "
            "choose another folder with --run-dir"
        )
    return CheckpointError(
        f"{place}: {error.strerror or error} while {doing}; earlier checkpoints are intact"
    )


def _free_bytes(path: Path) -> int:
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    return shutil.disk_usage(existing).free
