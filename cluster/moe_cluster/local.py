"""The launcher for this machine: torch elastic as a subprocess, one attempt at a time, nothing left behind.

torch elastic runs in a session of its own, so a Ctrl-C at the terminal reaches only the launcher, which asks
the workers to stop. If the launcher is killed, the kernel kills torch elastic and each worker after it.
"""

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType

from moe_cluster.contract import (
    ATTEMPT_VARIABLE,
    DONE,
    HEARTBEAT_FILE,
    LAUNCHER_LOG,
    LAUNCHER_VARIABLE,
    PREEMPTED,
    attempt_dir,
)
from moe_cluster.first_cause import FirstCause, find_first_cause, read_endings, was_preempted
from moe_cluster.job import JobSpec
from moe_cluster.linux import adopt_orphans, children, die_with_parent, end_children, stop_signals

POLL_S = 0.1
ORPHAN_PATIENCE_S = 2.0


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended: an exit code of the contract, and who broke first if it failed."""

    exit_code: int
    first_cause: FirstCause | None = None
    is_stop_requested: bool = False
    """Someone asked the launcher to stop; however it ended, it must not start again."""


@dataclass
class StopRequest:
    """What the launcher was asked while its workers run."""

    is_requested: bool = False
    is_urgent: bool = False
    """A second Ctrl-C: end now, save nothing."""


def command(job: JobSpec) -> list[str]:
    """The command line that starts all workers of `job`."""
    elastic = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts", "0"]
    return [*elastic, "--nproc-per-node", str(job.workers), "-m", job.module, *job.arguments]


def run_local(job: JobSpec, say: Callable[[str], None]) -> Outcome:
    """Run one attempt and wait for its end; `say` is told what a person at the terminal should know.

    For the main thread only: it handles signals, and counts every new child of this process as the job's.
    Raises KeyboardInterrupt, all processes gone, when it is interrupted a second time.
    """
    folder = attempt_dir(job.run_dir, job.attempt)
    adopt_orphans()
    strangers = children(os.getpid())
    with stop_on_signals(say) as stop, (folder / LAUNCHER_LOG).open("w") as log:
        elastic = _start(job, log.fileno())
        try:
            exit_code = _wait(elastic, job, stop)
        finally:
            _end(elastic, strangers)
    if exit_code == DONE:
        return Outcome(DONE)
    endings = read_endings(folder / LAUNCHER_LOG)
    if was_preempted(folder, endings):
        return Outcome(PREEMPTED)
    cause = find_first_cause(folder, endings)
    return Outcome(cause.exit_code, cause, stop.is_requested)


@contextlib.contextmanager
def stop_on_signals(say: Callable[[str], None]) -> Iterator[StopRequest]:
    """Turn SIGINT, SIGTERM and SIGHUP into a request; only a second SIGINT makes it urgent.

    Clusters repeat SIGTERM while they wait for a job to save, so a repeated one means nothing new.
    """
    stop = StopRequest()

    def receive(number: int, frame: FrameType | None) -> None:
        if stop.is_requested and number == signal.SIGINT:
            stop.is_urgent = True
        elif not stop.is_requested:
            stop.is_requested = True
            say("stopping: the workers save at their next step (Ctrl-C again ends them at once, unsaved)")

    before = {number: signal.signal(number, receive) for number in stop_signals()}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(job: JobSpec, log: int) -> "subprocess.Popen[bytes]":
    own = {ATTEMPT_VARIABLE: str(job.attempt), LAUNCHER_VARIABLE: str(os.getpid())}
    return subprocess.Popen(
        command(job),
        env={**os.environ, **job.environment, **own},
        stdin=subprocess.DEVNULL,
        stderr=log,
        start_new_session=True,
        preexec_fn=functools.partial(die_with_parent, os.getpid()),
    )


def _wait(elastic: "subprocess.Popen[bytes]", job: JobSpec, stop: StopRequest) -> int:
    told: set[int] = set()
    while True:
        if stop.is_urgent:
            raise KeyboardInterrupt
        if stop.is_requested:
            _forward(job, told)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return elastic.wait(POLL_S)


def _forward(job: JobSpec, told: set[int]) -> None:
    """Send SIGTERM to each worker that minds signals and was not told yet.

    A worker that is still importing has no heartbeat and would die of the signal; it is told when it has one.
    """
    for heartbeat in attempt_dir(job.run_dir, job.attempt).glob(f"rank-*/{HEARTBEAT_FILE}"):
        pid = json.loads(heartbeat.read_text())["pid"]
        if pid not in told:
            told.add(pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)


def _end(elastic: "subprocess.Popen[bytes]", strangers: set[int]) -> None:
    """Leave no process of the attempt behind."""
    patience_s = ORPHAN_PATIENCE_S
    if elastic.poll() is None:
        elastic.kill()
        elastic.wait()
        patience_s = 0.0
    end_children(strangers, patience_s)
