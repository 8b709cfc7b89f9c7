"""The launcher for this machine: torch elastic as a subprocess, one attempt at a time, nothing left behind.

torch elastic runs in a session of its own, so a Ctrl-C at the terminal reaches only the launcher, which asks
the workers to stop. If the launcher is killed, the kernel kills torch elastic and each worker after it.
"""

import contextlib
import functools
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

from moe_cluster.contract import (
    ATTEMPT_VARIABLE,
    HEARTBEAT_FILE,
    LAUNCHER_LOG,
    LAUNCHER_VARIABLE,
    attempt_dir,
)
from moe_cluster.job import Attempt
from moe_cluster.launcher import Outcome, outcome_of
from moe_cluster.linux import adopt_orphans, children, die_with_parent, end_children
from moe_cluster.stop import StopRequest

POLL_S = 0.1
ORPHAN_PATIENCE_S = 2.0


class LocalLauncher:
    """Workers on this host: see launcher.py."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = environment

    def choose_workers(self, allowed: Sequence[int], stop: StopRequest, say: Callable[[str], None]) -> int:
        """The largest: this host has room for as many as its user wants."""
        return allowed[-1]

    def command(self, attempt: Attempt) -> str:
        return shlex.join(_command(attempt))

    def run(self, attempt: Attempt, stop: StopRequest, say: Callable[[str], None]) -> Outcome:
        """See launcher.py. Counts every new child of this process as the attempt's."""
        folder = attempt_dir(attempt.run_dir, attempt.number)
        adopt_orphans()
        strangers = children(os.getpid())
        with (folder / LAUNCHER_LOG).open("w") as log:
            elastic = _start(attempt, self.environment, log.fileno())
            try:
                exit_code = _wait(elastic, attempt, stop)
            finally:
                _end(elastic, strangers)
        return outcome_of(folder, exit_code)


def _command(attempt: Attempt) -> list[str]:
    elastic = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts", "0"]
    return [*elastic, "--nproc-per-node", str(attempt.workers), "-m", attempt.module, *attempt.arguments]


def _start(attempt: Attempt, environment: Mapping[str, str], log: int) -> "subprocess.Popen[bytes]":
    own = {ATTEMPT_VARIABLE: str(attempt.number), LAUNCHER_VARIABLE: str(os.getpid())}
    return subprocess.Popen(
        _command(attempt),
        env={**environment, **attempt.environment, **own},
        stdin=subprocess.DEVNULL,
        stderr=log,
        start_new_session=True,
        preexec_fn=functools.partial(die_with_parent, os.getpid()),
    )


def _wait(elastic: "subprocess.Popen[bytes]", attempt: Attempt, stop: StopRequest) -> int:
    told: set[int] = set()
    while True:
        if stop.is_urgent:
            raise KeyboardInterrupt
        if stop.is_requested:
            _forward(attempt, told)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return elastic.wait(POLL_S)


def _forward(attempt: Attempt, told: set[int]) -> None:
    """Send SIGTERM to each worker that minds signals and was not told yet.

    A worker that is still importing has no heartbeat and would die of the signal; it is told when it has one.
    """
    for heartbeat in attempt_dir(attempt.run_dir, attempt.number).glob(f"rank-*/{HEARTBEAT_FILE}"):
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
