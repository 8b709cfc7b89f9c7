"""Which checkpoints an attempt may resume from: those of its own ancestors, and of them only what led to it.

Each attempt records at its start what it resumed from. A checkpoint is eligible if the newest earlier attempt
wrote it, or an ancestor of that one at a step not beyond the one its successor resumed from. So whatever an
older attempt commits after a newer one began - a worker cut off from the network, say - is never selected. No
clock is involved. Attempts and checkpoints also carry the id of their run (`identity.py`), so what another run wrote
under the same number is not selected either.
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
    """What an attempt recorded at its start."""

    writer: Writer
    resumed_from: Origin | None


def record_start(run_dir: Path, attempt: int, resumed_from: Origin | None) -> None:
    """Write `attempts/K/start.json` and the run's identity; one rank does it, between choosing and the first save.

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
    """Whether `attempt` has recorded its start."""
    return (attempt_dir(run_dir, attempt) / FILE_NAME).exists()


def newest_attempt(run_dir: Path) -> int:
    """The highest number of any attempt that has a folder; 0 if there is none."""
    return max(_attempts(run_dir), default=0)


def count_attempts(run_dir: Path) -> int:
    """How many attempts have a folder."""
    return len(_attempts(run_dir))


def started_attempts(run_dir: Path) -> list[int]:
    """The numbers of the attempts that have recorded their start, ascending."""
    return sorted(number for number in _attempts(run_dir) if has_started(run_dir, number))


def last_number(run_dir: Path) -> int:
    """The highest number that an attempt is known to have had, its folder still there or not; 0 if there is none.

    Raises CheckpointError or RunError for files that cannot be read.
    """
    known = read_identity(run_dir)
    recorded = known.last_attempt if known else _last_in_rows(run_dir)
    return max(recorded, newest_attempt(run_dir), newest_writer(CheckpointFolder(run_dir)))


def _last_in_rows(run_dir: Path) -> int:
    """The highest number in the rows of a run without an identity; 0 if there is none, or folders tell it."""
    if newest_attempt(run_dir):
        return 0
    return max((row.get("attempt", 1) for row in read_rows(run_dir / METRICS_FILE)), default=0)


def limits(run_dir: Path, attempt: int) -> Limits:
    """The lineage seen from `attempt`: its own, if it has started, or that of the newest attempt before it, or that of
    the checkpoint which the run was forked from.

    Attempts that never started are passed over. Raises CheckpointError for a start.json that cannot be read.
    """
    started = [number for number in started_attempts(run_dir) if number <= attempt]
    found: dict[Writer, float] = {}
    start = _start(run_dir, started[-1]) if started else None
    fork = _fork(run_dir)
    writer, last = (start.writer, math.inf) if start else (fork.writer, fork.step) if fork else (None, 0)
    while writer is not None and writer not in found:
        found[writer] = last
        start = _start(run_dir, writer.attempt)
        origin = start.resumed_from if start and start.writer == writer else None
        writer, last = (origin.writer, origin.step) if origin else (None, 0)
    return found


def eligible_steps(folder: CheckpointFolder, attempt: int, written_by: Writers | None = None) -> list[int]:
    """Steps of committed checkpoints that `attempt` may resume from, ascending. `written_by`: if it is known already.

    One whose manifest cannot be read is among them: nobody knows that it is fenced, and it must not be
    overlooked.
    """
    known = limits(folder.run_dir, attempt)
    written_by = writers(folder) if written_by is None else written_by
    return [step for step, wrote in written_by.items() if is_eligible(known, step, wrote)]


def unexplained_steps(folder: CheckpointFolder, written_by: Writers | None = None) -> list[int]:
    """Steps of committed checkpoints that no recorded attempt wrote or resumed from, ascending: of another run, or of
    attempts whose records are gone. `written_by`: if it is known already."""
    starts = [_start(folder.run_dir, number) for number in started_attempts(folder.run_dir)]
    origins = [_fork(folder.run_dir), *(start.resumed_from for start in starts if start)]
    known = {start.writer for start in starts if start} | {origin.writer for origin in origins if origin}
    written_by = writers(folder) if written_by is None else written_by
    return [step for step, wrote in written_by.items() if wrote is not None and wrote not in known]


def is_eligible(known: Limits, step: int, written_by: Writer | None) -> bool:
    """Whether a checkpoint of `step` by `written_by` (None: unknown) is on a lineage."""
    return written_by is None or step <= known.get(written_by, -1)


def writers(folder: CheckpointFolder) -> Writers:
    """Who wrote each committed checkpoint, in the order of their steps."""
    return {step: writer(folder.committed(step)) for step in folder.steps()}


def writer(checkpoint: Path) -> Writer | None:
    """Who wrote a committed checkpoint, None if its manifest cannot be read."""
    try:
        return read_manifest(checkpoint).writer
    except CheckpointError:
        return None


def writer_of(run_dir: Path, attempt: int) -> Writer:
    """As whom `attempt`, which has started, writes checkpoints."""
    start = _start(run_dir, attempt)
    return start.writer if start else Writer("", attempt)


def newest_writer(folder: CheckpointFolder) -> int:
    """The newest attempt that a committed checkpoint is of; 0 if there is none of which it is known."""
    return max((wrote.attempt for wrote in writers(folder).values() if wrote), default=0)


def refuse_if_superseded(run_dir: Path, attempt: int) -> None:
    """Raise CheckpointError if a newer attempt exists: what this one would commit must not appear."""
    newest = newest_attempt(run_dir)
    if newest > attempt:
        raise CheckpointError(
            f"{run_dir}: attempt {attempt} is superseded by attempt {newest} and commits nothing more; end it"
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
    known = read_identity(run_dir)
    return known.forked_from if known else None


def _start(run_dir: Path, attempt: int) -> Start | None:
    """What `attempt` recorded; None if it has no record. Raises CheckpointError for one that cannot be read."""
    path = attempt_dir(run_dir, attempt) / FILE_NAME
    try:
        data = json.loads(path.read_bytes())
        origin = data["resumed_from"]
        return Start(Writer(data.get("run", ""), attempt), None if origin is None else Origin(**origin))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(
            f"{path}: cannot be read, so what led to attempt {attempt} is not known; restore it "
            f'or write {{"attempt": {attempt}, "resumed_from": null}} into it to forget what came before'
        ) from None
