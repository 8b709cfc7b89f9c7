"""How the ranks of one save meet: through small files in its temporary folder, never through a collective.

So a save may run in a background thread while the main thread uses the process group, and a rank that is gone
is named instead of waited for. Reports and notes carry the number of the save within its attempt: what an
earlier save of the same step left behind does not count.
"""

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path

from moe_cluster.atomic import replace_text
from moe_train.checkpoint.folder import CheckpointFolder, remove
from moe_train.checkpoint.manifest import RankReport
from moe_train.errors import CheckpointError

logger = logging.getLogger(__name__)
POLL_S = 0.02
GRACE_S = 5.0  # for the new name to appear on a network file system after the old one has gone


@dataclass(frozen=True)
class Save:
    """One save as one rank sees it."""

    folder: CheckpointFolder
    step: int
    number: int
    """Saves of this attempt so far, this one included: the same on every rank."""
    attempt: int
    rank: int
    size: int
    timeout_s: float
    """How long nothing may happen on another rank."""
    max_file_bytes: int

    @property
    def temporary(self) -> Path:
        """Where all ranks write."""
        return self.folder.temporary(self.step, self.attempt)

    @property
    def note(self) -> Path:
        """Where this rank says that it failed; for rank 0 not in the temporary folder, which it removes."""
        return self.failure_note if self.rank == 0 else self.failure(self.rank)

    @property
    def failure_note(self) -> Path:
        """Where rank 0 says why the save failed."""
        return self.folder.failure_note(self.step, self.attempt)

    def report(self, rank: int) -> Path:
        """Where `rank` says what it wrote."""
        return self.temporary / f"rank-{rank:05d}.json"

    def failure(self, rank: int) -> Path:
        """Where a rank other than 0 says that it failed."""
        return self.temporary / f"rank-{rank:05d}.failed"


def await_reports(save: Save) -> list[RankReport]:
    """The reports of all ranks, in rank order. Raises CheckpointError naming the ranks that fail."""
    reports: dict[int, RankReport] = {}
    deadline = time.monotonic() + save.timeout_s
    while missing := [rank for rank in range(save.size) if rank not in reports]:
        for rank in missing:
            if (report := _read_report(save, rank)) is not None:
                reports[rank] = report
                deadline = time.monotonic() + save.timeout_s
            elif (reason := _read_note(save.failure(rank), save.number)) is not None:
                raise CheckpointError(f"rank {rank}: {reason}")
        if time.monotonic() > deadline:
            raise CheckpointError(
                f"{save.temporary}: step {save.step} is not saved, since ranks {missing} were silent for "
                f"{save.timeout_s:g} s; look at their logs, and whether they see the same file system"
            )
        if len(reports) < save.size:
            time.sleep(POLL_S)
    return [reports[rank] for rank in range(save.size)]


def await_outcome(save: Save) -> None:
    """Wait until rank 0 has committed. Raises CheckpointError, with its reason, if it gave up."""
    deadline = time.monotonic() + save.timeout_s * save.size  # rank 0 may wait so long for the slowest ranks
    while save.temporary.exists():
        raise_if_given_up(save)
        if time.monotonic() > deadline:
            raise CheckpointError(
                f"{save.temporary}: step {save.step} is not saved, since rank 0 neither committed it nor "
                "gave it up; look at its log"
            )
        time.sleep(POLL_S)
    raise_if_given_up(save)  # an older checkpoint of the step may be there: that it exists says nothing alone
    deadline = time.monotonic() + GRACE_S
    while not save.folder.committed(save.step).exists():
        raise_if_given_up(save)
        if time.monotonic() > deadline:
            raise CheckpointError(f"{save.temporary}: was removed while step {save.step} was being saved")
        time.sleep(POLL_S)


def raise_if_given_up(save: Save) -> None:
    """Raise CheckpointError with rank 0's reason, if it has left one."""
    if (reason := _read_note(save.failure_note, save.number)) is not None:
        raise CheckpointError(reason)


def give_up(save: Save, reason: str) -> None:
    """Free the disk first, then tell the others why, and (rank 0) remove the temporary folder.

    Where not even that can be done, it is logged: the failure that led here is what the user must see.
    """
    try:
        for path in save.temporary.glob(f"rank-{save.rank:05d}*"):
            remove(path)
        if save.size > 1 and save.note.parent.is_dir():
            replace_text(save.note, json.dumps({"save": save.number, "reason": reason}))
        if save.rank == 0:
            remove(save.temporary)
    except OSError as error:
        logger.warning("%s is not cleaned up (%s); other ranks may time out.", save.temporary, error)


def _read_report(save: Save, rank: int) -> RankReport | None:
    try:
        report = RankReport.from_bytes(save.report(rank).read_bytes())
    except FileNotFoundError:
        return None
    return report if report.save == save.number else None


def _read_note(path: Path, number: int) -> str | None:
    try:
        note = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    return str(note["reason"]) if note["save"] == number else None
