"""Coordinates the ranks of one save through small files in its temporary folder, never through a collective.

So a save may run in a background thread while the main thread uses the process group, and a missing rank is named
instead of blocking the others. Reports and notes carry the number of the save within its attempt, so that leftovers of
an earlier save of the same step are ignored.
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
    """Describes one save on one rank."""

    folder: CheckpointFolder
    step: int
    number: int
    """Saves of this attempt so far, this one included: the same on every rank."""
    attempt: int
    rank: int
    size: int
    timeout_s: float
    """How long another rank may be silent."""
    max_file_bytes: int

    @property
    def temporary(self) -> Path:
        """Returns the folder to which all ranks write."""
        return self.folder.temporary(self.step, self.attempt)

    @property
    def note(self) -> Path:
        """Returns the file in which this rank reports that it failed.

        Rank 0's is outside the temporary folder, which rank 0 removes.
        """
        return self.failure_note if self.rank == 0 else self.failure(self.rank)

    @property
    def failure_note(self) -> Path:
        """Returns the file in which rank 0 reports why the save failed."""
        return self.folder.failure_note(self.step, self.attempt)

    def report(self, rank: int) -> Path:
        """Returns the path where `rank` reports what it wrote."""
        return self.temporary / f"rank-{rank:05d}.json"

    def failure(self, rank: int) -> Path:
        """Returns the path where a rank other than 0 reports that it failed."""
        return self.temporary / f"rank-{rank:05d}.failed"


def await_reports(save: Save) -> list[RankReport]:
    """Waits for the reports of all ranks, returned in rank order. Raises CheckpointError naming ranks that fail."""
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
                f"{save.temporary}: step {save.step} is not saved, because ranks {missing} did not report within "
                f"{save.timeout_s:g} s; check their logs, and that they use the same file system"
            )
        if len(reports) < save.size:
            time.sleep(POLL_S)
    return [reports[rank] for rank in range(save.size)]


def await_outcome(save: Save) -> None:
    """Waits until rank 0 has committed. Raises CheckpointError, with its reason, if it gave up."""
    # Rank 0 may wait this long for the slowest ranks.
    deadline = time.monotonic() + save.timeout_s * save.size
    while save.temporary.exists():
        raise_if_given_up(save)
        if time.monotonic() > deadline:
            raise CheckpointError(
                f"{save.temporary}: step {save.step} is not saved, because rank 0 neither committed nor abandoned it; "
                "check its log"
            )
        time.sleep(POLL_S)
    # An older checkpoint of the step may exist, so its existence alone proves nothing.
    raise_if_given_up(save)
    deadline = time.monotonic() + GRACE_S
    while not save.folder.committed(save.step).exists():
        raise_if_given_up(save)
        if time.monotonic() > deadline:
            raise CheckpointError(f"{save.temporary}: was removed while step {save.step} was being saved")
        time.sleep(POLL_S)


def raise_if_given_up(save: Save) -> None:
    """Raises CheckpointError with rank 0's reason, if it has left one."""
    if (reason := _read_note(save.failure_note, save.number)) is not None:
        raise CheckpointError(reason)


def give_up(save: Save, reason: str) -> None:
    """Frees the disk, then reports the reason to the other ranks, and on rank 0 removes the temporary folder.

    If even that fails, it is only logged, because the user must see the failure that led here.
    """
    try:
        for path in save.temporary.glob(f"rank-{save.rank:05d}*"):
            remove(path)
        if save.size > 1 and save.note.parent.is_dir():
            replace_text(save.note, json.dumps({"save": save.number, "reason": reason}))
        if save.rank == 0:
            remove(save.temporary)
    except OSError as error:
        logger.warning("%s was not cleaned up (%s); other ranks may time out.", save.temporary, error)


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
