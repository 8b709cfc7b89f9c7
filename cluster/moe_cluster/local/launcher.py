"""Launches attempts on this machine, each with torch elastic as a subprocess, and leaves no process behind."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from moe_cluster.contract import DONE, LAUNCHER_LOG, PREEMPTED, attempt_dir
from moe_cluster.job import Attempt
from moe_cluster.launcher import Outcome, outcome_of
from moe_cluster.node.elastic import (
    LOOPBACK,
    elastic_command,
    has_begun,
    on_loopback,
    run_elastic,
    with_threads,
)
from moe_cluster.stop import StopRequest
from moe_cluster.watch.watch import Watch


class LocalLauncher:
    """Runs workers on this host: see launcher.py."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = environment

    def choose_workers(
        self, run_dir: Path, allowed: Sequence[int], stop: StopRequest, say: Callable[[str], None]
    ) -> int | None:
        """Returns the largest number: this host has room for as many as its user wants."""
        return allowed[-1]

    def command(self, attempt: Attempt) -> str:
        return shlex.join(_command(attempt))

    def run(self, attempt: Attempt, stop: StopRequest, say: Callable[[str], None]) -> Outcome:
        """See launcher.py. Counts every new child of this process as the attempt's."""
        folder = attempt_dir(attempt.run_dir, attempt.number)
        watch = Watch(attempt.run_dir, attempt.number, attempt.workers, attempt.start_s)
        log = folder / LAUNCHER_LOG
        ended_unbegun = False  # stopped before a worker had begun, with nothing to save

        def must_end() -> bool:
            nonlocal ended_unbegun
            ended_unbegun = stop.is_requested and not has_begun(attempt)
            return ended_unbegun or watch.check(say)

        exit_code = run_elastic(
            _command(attempt),
            attempt,
            on_loopback(with_threads(self.environment, attempt.workers)),
            log,
            stop,
            must_end=must_end,
        )
        return outcome_of(folder, exit_code) if exit_code == DONE or not ended_unbegun else Outcome(PREEMPTED)


def _command(attempt: Attempt) -> list[str]:
    # Like --standalone, but by address: no host name has to resolve, not even this host's own.
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{LOOPBACK}:0", "--local-addr", LOOPBACK]
    return elastic_command(attempt, attempt.workers, [*meeting, "--rdzv-id", "moe-train"])
