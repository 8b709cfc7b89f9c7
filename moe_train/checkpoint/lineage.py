"""Decides which checkpoints an attempt may resume from: those of its ancestors, up to the step that led to it.

Each attempt records at its start what it resumed from. A checkpoint is eligible if the newest earlier attempt wrote it,
or if an ancestor of that attempt wrote it at a step not beyond the one its successor resumed from. So anything an older
attempt commits after a newer one began, for example on a node cut off from the network, is never selected. No clock is
involved. Attempts and checkpoints also carry the id of their run (`identity.py`), so checkpoints that another run wrote
under the same number are not selected either.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from moe_cluster.contract import attempt_dir
from moe_train.checkpoint.folder import CheckpointFolder, explain, write_durably
from moe_train.checkpoint.manifest import read_manifest
from moe_train.errors import CheckpointError, RunError
from moe_train.identity import Origin, Writer, begin_attempt, read_identity
from moe_train.monitor.rows import METRICS_FILE, read_rows

FILE_NAME = "start.json"
Limits = Mapping[Writer, float]
"""Writer -> the last of its steps that is on the lineage; infinite for the newest."""
Writers = Mapping[int, Writer | None]
"""Step -> who wrote its checkpoint, None if its manifest cannot be read; those of large models take long to read."""


class Start(NamedTuple):
    """Holds what an attempt recorded at its start."""

    writer: Writer
    resumed_from: Origin | None


def record_start(run_dir: Path, attempt: int, resumed_from: Origin | None) -> None:
    """Writes `attempts/K/start.json` and the run's identity, on one rank, after `choose` and before the first save.

    `resumed_from` is None for an attempt that starts anew. Raises CheckpointError if the folder cannot be
    written.
    """
    folder = attempt_dir(run_dir, attempt)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "attempt": attempt,
            "run": begin_attempt(run_dir, attempt).id,
            "resumed_from": None if resumed_from is None else asdict(resumed_from),
        }
        write_durably(folder / FILE_NAME, json.dumps(content).encode())
    except OSError as error:
        raise explain(error, f"recording the start of attempt {attempt}", folder) from None


def has_started(run_dir: Path, attempt: int) -> bool:
    """Returns whether `attempt` has recorded its start."""
    return (attempt_dir(run_dir, attempt) / FILE_NAME).exists()


def newest_attempt(run_dir: Path) -> int:
    """Returns the highest number of any attempt that has a folder; 0 if there is none."""
    return max(_attempts(run_dir), default=0)


def count_attempts(run_dir: Path) -> int:
    """Counts the attempts that have a folder."""
    return len(_attempts(run_dir))


def started_attempts(run_dir: Path) -> list[int]:
    """Returns the numbers of the attempts that have recorded their start, ascending."""
    return sorted(number for number in _attempts(run_dir) if has_started(run_dir, number))


def last_number(run_dir: Path) -> int:
    """Returns the highest number that any attempt had, even if its folder is gone; 0 if there was none.

    Raises CheckpointError or RunError for files that cannot be read.
    """
    identity = read_identity(run_dir)
    last = identity.last_attempt if identity else _last_in_rows(run_dir)
    return max(last, newest_attempt(run_dir), newest_writer(CheckpointFolder(run_dir)))


def _last_in_rows(run_dir: Path) -> int:
    """Returns the highest number in the rows of a run without an identity; 0 if there is none, or if folders exist."""
    if newest_attempt(run_dir):
        return 0
    return max((row.get("attempt", 1) for row in read_rows(run_dir / METRICS_FILE)), default=0)


def limits(run_dir: Path, attempt: int) -> Limits:
    """Returns the lineage of `attempt`, or of its predecessor if it has not started.

    The predecessor is the newest earlier attempt that started or, without one, the checkpoint from which the run was
    forked. Raises CheckpointError for a start.json that cannot be read.
    """
    started = [number for number in started_attempts(run_dir) if number <= attempt]
    last_steps: dict[Writer, float] = {}
    start = _start(run_dir, started[-1]) if started else None
    fork = _fork(run_dir)
    writer, last = (start.writer, math.inf) if start else (fork.writer, fork.step) if fork else (None, 0)
    while writer is not None and writer not in last_steps:
        last_steps[writer] = last
        start = _start(run_dir, writer.attempt)
        origin = start.resumed_from if start and start.writer == writer else None
        writer, last = (origin.writer, origin.step) if origin else (None, 0)
    return last_steps


def eligible_steps(folder: CheckpointFolder, attempt: int, written_by: Writers | None = None) -> list[int]:
    """Returns the steps of committed checkpoints that `attempt` may resume from, ascending.

    They include those whose manifest cannot be read: these may not be fenced and must not be overlooked. Pass
    `written_by` if it has been read already.
    """
    last_steps = limits(folder.run_dir, attempt)
    written_by = writers(folder) if written_by is None else written_by
    return [step for step, wrote in written_by.items() if is_eligible(last_steps, step, wrote)]


def unexplained_steps(folder: CheckpointFolder, written_by: Writers | None = None) -> list[int]:
    """Returns the steps of committed checkpoints that no recorded attempt wrote or resumed from, ascending.

    Another run wrote them, or attempts whose records are gone. Pass `written_by` if it has been read already.
    """
    starts = [_start(folder.run_dir, number) for number in started_attempts(folder.run_dir)]
    origins = [_fork(folder.run_dir), *(start.resumed_from for start in starts if start)]
    recorded = {start.writer for start in starts if start} | {origin.writer for origin in origins if origin}
    written_by = writers(folder) if written_by is None else written_by
    return [step for step, wrote in written_by.items() if wrote is not None and wrote not in recorded]


def is_eligible(limits: Limits, step: int, written_by: Writer | None) -> bool:
    """Returns whether a checkpoint of `step` by `written_by` (None: unknown) is on a lineage."""
    return written_by is None or step <= limits.get(written_by, -1)


def writers(folder: CheckpointFolder) -> Writers:
    """Returns the writer of each committed checkpoint, in the order of their steps."""
    return {step: writer(folder.committed(step)) for step in folder.steps()}


def writer(checkpoint: Path) -> Writer | None:
    """Returns the writer of a committed checkpoint, None if its manifest cannot be read."""
    try:
        return read_manifest(checkpoint).writer
    except CheckpointError:
        return None


def writer_of(run_dir: Path, attempt: int) -> Writer:
    """Returns the writer that `attempt`, which has started, enters in its checkpoints."""
    start = _start(run_dir, attempt)
    return start.writer if start else Writer("", attempt)


def newest_writer(folder: CheckpointFolder) -> int:
    """Returns the newest attempt that wrote a committed checkpoint; 0 if no writer is known."""
    return max((wrote.attempt for wrote in writers(folder).values() if wrote), default=0)


def refuse_if_superseded(run_dir: Path, attempt: int) -> None:
    """Raises CheckpointError if a newer attempt exists: this one must not commit anything more."""
    newest = newest_attempt(run_dir)
    if newest > attempt:
        raise CheckpointError(
            f"{run_dir}: attempt {attempt} is superseded by attempt {newest} and must not commit any more; stop it"
        )


def _attempts(run_dir: Path) -> list[int]:
    root = attempt_dir(run_dir, 0).parent
    try:
        return [int(path.name) for path in root.iterdir() if path.name.isdigit()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise RunError.unreadable(run_dir, error) from None


def _fork(run_dir: Path) -> Origin | None:
    identity = read_identity(run_dir)
    return identity.forked_from if identity else None


def _start(run_dir: Path, attempt: int) -> Start | None:
    """Returns the record of `attempt`; None if it has none. Raises CheckpointError if it cannot be read."""
    path = attempt_dir(run_dir, attempt) / FILE_NAME
    try:
        data = json.loads(path.read_bytes())
        origin = data["resumed_from"]
        return Start(Writer(data.get("run", ""), attempt), None if origin is None else Origin(**origin))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(
            f"{path}: cannot be read, so what attempt {attempt} resumed from is unknown; restore it, "
            f'or write {{"attempt": {attempt}, "resumed_from": null}} into it to discard what came before'
        ) from None
