"""Finds which rank of a failed attempt failed first, and why, from the files that all its ranks left behind.

One rank's death makes the others fail on closed connections within milliseconds, so the first error written is often
a consequence. A rank that was killed leaves no error; torch elastic, its parent, prints its exit code.
"""

import json
import re
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moe_cluster.atomic import has_no_room
from moe_cluster.contract import (
    DONE,
    ERROR_FILE,
    FAILED,
    HEARTBEAT_FILE,
    LAUNCHER_LOG,
    LOG_FILE,
    PREEMPTED,
    STACKS_FILE,
    USAGE,
)
from moe_cluster.watch.findings import Hang, recorded_hang, recorded_no_start
from moe_cluster.watch.launcher_logs import last_words

# Messages of gloo, NCCL, torch's store and moe_kernels when the process at the other end is gone or does not answer.
CONSEQUENCE = re.compile(
    r"connection (closed|reset|refused)|broken pipe|socket closed|socketPollConnect|remote process exited"
    r"|ncclRemoteError|failed to recv|recvBytes|sendBytes|timed out|DistNetworkError|DistStoreError|PeerTimeoutError",
    re.IGNORECASE,
)
TIMED_OUT = re.compile(r"timed out", re.IGNORECASE)
# One entry of the report that torch elastic prints when a worker fails.
ENDING = re.compile(
    r"time\s*: (\S+)\s+host\s*: (\S+)\s+rank\s*: (\d+) \(local_rank: \d+\)\s+exitcode\s*: (-?\d+) \(pid: \d+\)"
)
ROOT_HEADING = "Root Cause (first observed failure)"


@dataclass(frozen=True)
class Ending:
    """Records how a worker ended, as its parent saw it: an exit code, or the negative number of a signal."""

    rank: int
    exit_code: int
    host: str = field(default="", compare=False)
    log: Path | None = field(default=None, compare=False)
    """The log of the launcher that saw it."""
    words: str | None = None
    """The reason where no exit code is known, such as the loss of a node."""


@dataclass(frozen=True)
class FirstCause:
    """Names the rank that failed first, its error, and its log."""

    rank: int | None
    """None if no rank can be named."""
    host: str
    step: int | None
    """Its last step; None before the first."""
    error: str
    """One line, or the whole message of an explained error."""
    log: Path
    exit_code: int
    traceback: str = ""
    is_explained: bool = False
    """The error is a message for the user, who need not know where it was raised."""

    @property
    def sentence(self) -> str:
        """Returns what failed, who reported it and when, without the path of the log."""
        who = "the workers' launcher" if self.rank is None else f"rank {self.rank}"
        when = "before the first step" if self.step is None else f"after step {self.step}"
        if self.is_explained:
            return f"{self.error}\n  reported by {who} on {self.host} {when}"
        return f"{who} on {self.host} failed {when}: {self.error}"

    def __str__(self) -> str:
        return f"{self.sentence}{'; ' if self.is_explained else chr(10) + '  '}see {self.log}"


def find_first_cause(attempt: Path, endings: Sequence[Ending]) -> FirstCause:
    """Returns the first cause of a failed attempt, from its folder and its workers' endings in their order."""
    errors = sorted(_errors(attempt), key=lambda error: error["time"])
    originals = [error for error in errors if not CONSEQUENCE.search(f"{error['type']}: {error['message']}")]
    hang = recorded_hang(attempt)
    if hang is not None and not any(error["time"] < hang[1] for error in originals):
        return _of_hang(attempt, hang[0])
    with_error = {error["rank"] for error in errors}
    silent = [
        ending
        for ending in endings
        if ending.rank not in with_error and ending.exit_code not in (DONE, PREEMPTED)
    ]
    if silent and silent[0] == endings[0]:
        return _of_ending(attempt, silent[0])
    if originals:
        return _of_error(attempt, originals[0])
    for ending in silent:
        if ending.exit_code != -signal.SIGTERM:  # torch elastic sends SIGTERM to all the others
            return _of_ending(attempt, ending, _timed_out_rank(errors))
    explained = {*with_error, *(ending.rank for ending in endings)}
    if errors and (lost := [beat for beat in _heartbeats(attempt) if beat["rank"] not in explained]):
        return _of_lost(attempt, lost[0])
    if errors:
        return _of_error(attempt, errors[0])
    return cause_without_worker(attempt)


def cause_without_worker(attempt: Path, words: str = "it ended without naming a worker") -> FirstCause:
    """Returns the cause of an attempt whose workers left nothing: its launcher's finding or last log line, or
    `words`."""
    log = attempt / LAUNCHER_LOG
    error = recorded_no_start(attempt) or "; ".join([words, *filter(None, [last_words(log)])])
    return FirstCause(None, socket.gethostname(), None, error, log, FAILED)


def read_endings(place: Path) -> list[Ending]:
    """Read how the workers ended, the earliest first; empty without a report of torch elastic.

    `place` is one launcher's log, or the folder of an attempt with the logs of all its nodes.
    """
    logs = sorted(place.glob("launcher*.log")) if place.is_dir() else [place]
    roots, others = [], []
    for log in logs:
        text = log.read_text(errors="replace")
        later, _, root = text.partition(ROOT_HEADING)
        roots += [
            (time, Ending(int(rank), int(code), host, log)) for time, host, rank, code in ENDING.findall(root)
        ]
        others += [Ending(int(rank), int(code), host, log) for _, host, rank, code in ENDING.findall(later)]
    return [ending for _, ending in sorted(roots, key=lambda entry: entry[0])] + others


def was_preempted(attempt: Path, endings: Sequence[Ending]) -> bool:
    """Returns whether the attempt ended because of a stop request, and can be resumed."""
    codes = {ending.exit_code for ending in endings}
    was_stopped = PREEMPTED in codes and codes <= {DONE, PREEMPTED, -signal.SIGTERM}
    return was_stopped and not _errors(attempt)


def _errors(attempt: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(attempt.glob(f"rank-*/{ERROR_FILE}"))]


def _heartbeats(attempt: Path) -> list[dict[str, Any]]:
    paths = sorted(attempt.glob(f"rank-*/{HEARTBEAT_FILE}"))
    return [
        {"rank": int(path.parent.name.removeprefix("rank-")), **json.loads(path.read_text())}
        for path in paths
    ]


def _of_lost(attempt: Path, last: dict[str, Any]) -> FirstCause:
    """Returns the cause for a worker that left nothing but its last heartbeat."""
    error = "it is gone without an exit code: its node, or the launcher on it, has died or is cut off"
    return FirstCause(last["rank"], last["host"], last["step"], error, attempt / LAUNCHER_LOG, FAILED)


def _of_error(attempt: Path, error: dict[str, Any]) -> FirstCause:
    lines = str(error["message"]).strip().splitlines() or [""]
    exit_code = USAGE if error["exit_code"] == USAGE else FAILED
    log = attempt / f"rank-{error['rank']}" / LOG_FILE
    is_explained = bool(error.get("explained"))
    text = "\n".join(lines) if is_explained else f"{error['type']}: {lines[0]}"
    return FirstCause(
        error["rank"], error["host"], error["step"], text, log, exit_code, error["traceback"], is_explained
    )


def _timed_out_rank(errors: Sequence[dict[str, Any]]) -> int | None:
    """Returns the rank that timed out waiting for another; None if there is none."""
    return next((error["rank"] for error in errors if TIMED_OUT.search(error["message"])), None)


def _of_ending(attempt: Path, ending: Ending, waited: int | None = None) -> FirstCause:
    folder = attempt / f"rank-{ending.rank}"
    heartbeat = folder / HEARTBEAT_FILE
    last: dict[str, Any] = {"host": ending.host or socket.gethostname(), "step": None}
    if heartbeat.exists():
        last = json.loads(heartbeat.read_text())
    # Before a worker opens its own log, it writes to the launcher's.
    log = folder / LOG_FILE if (folder / LOG_FILE).exists() else ending.log or attempt / LAUNCHER_LOG
    error = ending.words or _death(ending.exit_code)
    if ending.words is None and ending.exit_code > 0 and has_no_room(attempt):
        error += ", and the disk of the run's folder is too full for its error.json; free space, then resume"
    if waited is not None and ending.exit_code == -signal.SIGKILL and ending.words is None:
        where = f" (last seen at {last['where']})" if "where" in last else ""
        error = (
            f"it did not answer{where} until rank {waited} timed out after job.timeout_s, and was then killed"
        )
    return FirstCause(ending.rank, last["host"], last["step"], error, log, FAILED)


def _of_hang(attempt: Path, hang: Hang) -> FirstCause:
    """Returns the cause for an attempt that the launcher ended because it hung; the first suspect stands for all."""
    first = hang.suspects[0]
    folder = attempt / f"rank-{first.rank}"
    stacks = folder / STACKS_FILE
    log = stacks if stacks.exists() and stacks.stat().st_size else folder / LOG_FILE
    return FirstCause(first.rank, first.host, hang.step, hang.what, log, FAILED)


def _death(exit_code: int) -> str:
    if exit_code >= 0:
        return f"it exited with code {exit_code} without an error message"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = f"signal {-exit_code}"
    hint = " (the kernel does this when memory runs out)" if -exit_code == signal.SIGKILL else ""
    return f"it was killed by {name}{hint}"
