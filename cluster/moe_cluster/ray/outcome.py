"""Determines how an attempt on Ray ended, from its workers' files in the shared folder and from Ray's errors.

A worker's actor writes ending.json once the worker has ended. A rank without one was lost with its actor or its node,
or was still running when the attempt was ended; the launcher's and Ray's errors then say which.
"""

import contextlib
import json
import signal
import socket
import time
import traceback
from collections.abc import Mapping
from pathlib import Path

from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

from moe_cluster.contract import DONE, ENDING_FILE, FAILED, HEARTBEAT_FILE, LAUNCHER_LOG, LOG_FILE, PREEMPTED
from moe_cluster.launcher import Outcome
from moe_cluster.watch.findings import recorded_no_start
from moe_cluster.watch.first_cause import Ending, FirstCause, find_first_cause, was_preempted

SHARED_FOLDER_LAG_S = 2.0
"""How long a file written on another node may take to be seen here."""


def outcome_of_ray(
    folder: Path,
    workers: int,
    error: BaseException | None,
    lost: Mapping[str, str],
    gone: Mapping[str, str],
) -> Outcome:
    """Returns how the attempt in `folder` ended; `error` is Ray Train's.

    `lost` has the hosts whose loss ended the attempt, and `gone` those that no longer answer, each with a sentence.
    """
    if error is not None:
        # The disk may be full; the first cause has Ray's words as well.
        with contextlib.suppress(OSError):
            (folder / LAUNCHER_LOG).write_text("".join(traceback.format_exception(error)))
    endings = _endings(folder, workers, complete=error is None)
    ended = {ending.rank for ending in endings}
    if len(ended) == workers and {ending.exit_code for ending in endings} == {DONE}:
        return Outcome(DONE)
    if len(ended) == workers and was_preempted(folder, endings):
        return Outcome(PREEMPTED)
    if loss := _of_loss(folder, lost):
        return Outcome(FAILED, loss)
    said = _said_by_ray(error)
    silent = [_silent(folder, rank, said, gone) for rank in range(workers) if rank not in ended]
    if not endings and isinstance(getattr(error, "controller_failure", None), WorkerGroupStartupTimeoutError):
        return Outcome(PREEMPTED)  # another job has taken the room; nothing began
    if not endings and not any(
        (folder / f"rank-{rank}" / HEARTBEAT_FILE).exists() for rank in range(workers)
    ):
        return Outcome(FAILED, _never_began(folder, error, said))
    silent.sort(key=lambda ending: ending.words is None)  # those of which something is known go first
    cause = find_first_cause(folder, [*endings, *silent])
    return Outcome(cause.exit_code, cause)


def _of_loss(folder: Path, lost: Mapping[str, str]) -> FirstCause | None:
    """Returns the rank on a host that was lost; None if there is none."""
    for path in sorted(folder.glob(f"rank-*/{HEARTBEAT_FILE}")):
        beat, rank = json.loads(path.read_text()), int(path.parent.name.removeprefix("rank-"))
        if beat["host"] in lost:
            log = path.with_name(LOG_FILE)
            return FirstCause(rank, beat["host"], beat["step"], lost[beat["host"]], log, FAILED)
    return None


def _endings(folder: Path, workers: int, *, complete: bool) -> list[Ending]:
    """Read the workers' endings, the earliest first. With `complete`, wait until all of them are visible."""
    deadline = time.monotonic() + SHARED_FOLDER_LAG_S
    while True:
        paths = [
            path
            for path in (folder / f"rank-{rank}" / ENDING_FILE for rank in range(workers))
            if path.exists()
        ]
        if len(paths) == workers or not complete or time.monotonic() >= deadline:
            break
        time.sleep(0.1)
    endings = [(json.loads(path.read_text()), int(path.parent.name.removeprefix("rank-"))) for path in paths]
    endings.sort(key=lambda pair: pair[0]["time"])
    return [Ending(rank, ending["exit_code"], ending["host"]) for ending, rank in endings]


def _said_by_ray(error: BaseException | None) -> dict[int, str]:
    """Returns Ray's error for each rank whose actor failed, in one line."""
    failures = getattr(error, "worker_failures", {})
    return {rank: _first_line(failure) for rank, failure in failures.items()}


def _silent(folder: Path, rank: int, said: Mapping[int, str], gone: Mapping[str, str]) -> Ending:
    heartbeat = folder / f"rank-{rank}" / HEARTBEAT_FILE
    host = json.loads(heartbeat.read_text())["host"] if heartbeat.exists() else ""
    return Ending(rank, -signal.SIGKILL, host, words=gone.get(host) or said.get(rank))


def _never_began(folder: Path, error: BaseException | None, said: Mapping[int, str]) -> FirstCause:
    words = next(iter(said.values()), None) or (_first_line(error) if error else "no worker began")
    words = recorded_no_start(folder) or words
    return FirstCause(None, socket.gethostname(), None, words, folder / LAUNCHER_LOG, FAILED)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'without a word'}"
