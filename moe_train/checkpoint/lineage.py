"""Which checkpoints an attempt may resume from: those of its own ancestors, and of them only what led to it.

Each attempt records at its start what it resumed from. A checkpoint is eligible if the newest earlier attempt
wrote it, or an ancestor of that one at a step not beyond the one its successor resumed from. So whatever an
older attempt commits after a newer one began - a worker cut off from the network, say - is never selected. No
clock is involved.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from moe_cluster.contract import attempt_dir
from moe_train.checkpoint.folder import CheckpointFolder, explain, write_durably
from moe_train.checkpoint.manifest import read_manifest
from moe_train.errors import CheckpointError

FILE_NAME = "start.json"
Limits = Mapping[int, float]
"""Attempt -> the last of its steps that is on the lineage; infinite for the newest."""


@dataclass(frozen=True)
class Origin:
    """The checkpoint an attempt resumed from."""

    attempt: int
    step: int


def record_start(run_dir: Path, attempt: int, resumed_from: Origin | None) -> None:
    """Write `attempts/K/start.json`; one rank does it, between choosing and the first save.

    `resumed_from` is None for an attempt that starts anew. Raises CheckpointError if the folder cannot be
    written.
    """
    folder = attempt_dir(run_dir, attempt)
    origin = None if resumed_from is None else {"attempt": resumed_from.attempt, "step": resumed_from.step}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"attempt": attempt, "resumed_from": origin}).encode()
        write_durably(folder / FILE_NAME, content)
    except OSError as error:
        raise explain(error, f"recording the start of attempt {attempt}", folder) from None


def has_started(run_dir: Path, attempt: int) -> bool:
    """Whether `attempt` has recorded its start."""
    return (attempt_dir(run_dir, attempt) / FILE_NAME).exists()


def newest_attempt(run_dir: Path) -> int:
    """The highest number of any attempt that has a folder; 0 if there is none."""
    return max(_attempts(run_dir), default=0)


def limits(run_dir: Path, attempt: int) -> Limits:
    """The lineage seen from `attempt`: its own, if it has started, or that of the newest attempt before it.

    Attempts that never started are passed over. Raises CheckpointError for a start.json that cannot be read.
    """
    started = [number for number in _attempts(run_dir) if number <= attempt and has_started(run_dir, number)]
    found: dict[int, float] = {}
    current, last = max(started, default=None), math.inf
    while current is not None and current not in found:
        found[current] = last
        origin = _origin(run_dir, current)
        current, last = (origin.attempt, origin.step) if origin else (None, 0)
    return found


def eligible_steps(folder: CheckpointFolder, attempt: int) -> list[int]:
    """Steps of committed checkpoints that `attempt` may resume from, ascending.

    One whose manifest cannot be read is among them: nobody knows that it is fenced, and it must not be
    overlooked.
    """
    known = limits(folder.run_dir, attempt)
    return [step for step in folder.steps() if is_eligible(known, step, writer(folder.committed(step)))]


def is_eligible(known: Limits, step: int, written_by: int | None) -> bool:
    """Whether a checkpoint of `step` by attempt `written_by` (None: unknown) is on a lineage."""
    return written_by is None or step <= known.get(written_by, -1)


def writer(checkpoint: Path) -> int | None:
    """The attempt that wrote a committed checkpoint, None if its manifest cannot be read."""
    try:
        return read_manifest(checkpoint).attempt
    except CheckpointError:
        return None


def newest_writer(folder: CheckpointFolder) -> int:
    """The newest attempt that a committed checkpoint is of; 0 if there is none of which it is known."""
    return max((writer(folder.committed(step)) or 0 for step in folder.steps()), default=0)


def refuse_if_superseded(run_dir: Path, attempt: int) -> None:
    """Raise CheckpointError if a newer attempt exists: what this one would commit must not appear."""
    newest = newest_attempt(run_dir)
    if newest > attempt:
        raise CheckpointError(
            f"{run_dir}: attempt {attempt} is superseded by attempt {newest} and commits nothing more; end it"
        )


def _attempts(run_dir: Path) -> list[int]:
    root = attempt_dir(run_dir, 0).parent
    return [int(path.name) for path in root.iterdir() if path.name.isdigit()] if root.is_dir() else []


def _origin(run_dir: Path, attempt: int) -> Origin | None:
    path = attempt_dir(run_dir, attempt) / FILE_NAME
    try:
        origin = json.loads(path.read_bytes())["resumed_from"]
        return None if origin is None else Origin(int(origin["attempt"]), int(origin["step"]))
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(
            f"{path}: cannot be read, so what led to attempt {attempt} is not known; restore it "
            f'or write {{"attempt": {attempt}, "resumed_from": null}} into it to forget what came before'
        ) from None
