"""Decides when a run that failed or was stopped is restarted, by counting attempts without a new checkpoint."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_cluster.atomic import replace_text
from moe_cluster.contract import (
    BAD_NODES_FILE,
    DONE,
    LOST_FILE,
    OUTCOME_FILE,
    PREEMPTED,
    attempt_dir,
    in_attempts,
)

MOST_STOPS = 4
"""The limit of attempts in a row that are stopped before they save anything new."""
MOST_LOSSES = 4
"""The limit of times in a row that a cluster restarts a job after losing a node, before anything new is saved."""
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 60.0


@dataclass
class Restarts:
    """Counts failures in a row; a new checkpoint since the last failure resets the count."""

    limit: int
    """The limit of restarts in a row without a new checkpoint."""
    in_a_row: int = 0
    saved_step: int = -1
    """Newest checkpoint at the last failure; -1: none."""

    def after_failure(self, saved_step: int) -> float | None:
        """Returns the seconds to wait before the next attempt; None if there is none. `saved_step`: the newest
        checkpoint, or -1.

        The first restart comes at once; each further one in a row waits twice as long as the one before.
        """
        if saved_step > self.saved_step:
            self.in_a_row = 0
        self.saved_step = max(self.saved_step, saved_step)
        self.in_a_row += 1
        if self.in_a_row > self.limit:
            return None
        return 0.0 if self.in_a_row == 1 else min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (self.in_a_row - 2))


def stops_in_vain(run_dir: Path) -> int:
    """Counts the last attempts in a row that were stopped without a new checkpoint."""
    ends = outcomes(run_dir)
    saved = [None, *(end.get("saved") for end in ends)]
    stops = 0
    for before, end in reversed(list(zip(saved, ends, strict=False))):
        if end["exit_code"] != PREEMPTED or end.get("saved") != before:
            break
        stops += 1
    return stops


def record_loss(run_dir: Path, attempt: int, job: str) -> None:
    """Record that the cluster restarted `job` after `attempt`. Raises OSError."""
    replace_text(attempt_dir(run_dir, attempt) / LOST_FILE, json.dumps({"job": job}) + "\n")


def lost_attempts(run_dir: Path, job: str) -> list[int]:
    """Returns the attempts after which the cluster had to restart `job`, ascending; not those that it had stopped, or
    after which the job itself asked for other nodes.

    Whether their launcher saw them fail depends on which node was lost, so that is ignored.
    """
    restarted = [path.parent for path in in_attempts(run_dir, LOST_FILE) if _read(path).get("job") == job]
    lost = [folder for folder in restarted if not (folder / BAD_NODES_FILE).exists()]
    ended = (DONE, PREEMPTED)
    return [int(folder.name) for folder in lost if _read(folder / OUTCOME_FILE).get("exit_code") not in ended]


def outcomes(run_dir: Path) -> list[dict[str, Any]]:
    """Returns the outcomes of the attempts whose end a launcher saw, in their order."""
    return [end for path in in_attempts(run_dir, OUTCOME_FILE) if (end := _read(path))]


def _read(path: Path) -> dict[str, Any]:
    """Read a file of JSON; empty if it is missing, or a dying node left it without content."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError):
        return {}
