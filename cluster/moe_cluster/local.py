"""The launcher for this machine: torch elastic as a subprocess, one attempt at a time, nothing left behind."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from moe_cluster.contract import LAUNCHER_LOG, attempt_dir
from moe_cluster.elastic import elastic_command, run_elastic, with_threads
from moe_cluster.job import Attempt
from moe_cluster.launcher import Outcome, outcome_of
from moe_cluster.linux import interface_of
from moe_cluster.stop import StopRequest
from moe_cluster.watch import Watch

LOOPBACK = "127.0.0.1"


class LocalLauncher:
    """Workers on this host: see launcher.py."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = environment

    def choose_workers(
        self, run_dir: Path, allowed: Sequence[int], stop: StopRequest, say: Callable[[str], None]
    ) -> int | None:
        """The largest: this host has room for as many as its user wants."""
        return allowed[-1]

    def command(self, attempt: Attempt) -> str:
        return shlex.join(_command(attempt))

    def run(self, attempt: Attempt, stop: StopRequest, say: Callable[[str], None]) -> Outcome:
        """See launcher.py. Counts every new child of this process as the attempt's."""
        folder = attempt_dir(attempt.run_dir, attempt.number)
        watch = Watch(attempt.run_dir, attempt.number, attempt.workers)
        log = folder / LAUNCHER_LOG
        exit_code = run_elastic(
            _command(attempt),
            attempt,
            _on_loopback(with_threads(self.environment, attempt.workers)),
            log,
            stop,
            must_end=partial(watch.tell, say),
        )
        return outcome_of(folder, exit_code)


def _command(attempt: Attempt) -> list[str]:
    # What --standalone would say, by address: nothing here needs a name, not even this host's own.
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{LOOPBACK}:0", "--local-addr", LOOPBACK]
    return elastic_command(attempt, attempt.workers, [*meeting, "--rdzv-id", "moe-train"])


def _on_loopback(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of workers whose gloo does not look this host's name up, unless a user names an interface."""
    interface = interface_of(LOOPBACK)
    return {**({"GLOO_SOCKET_IFNAME": interface} if interface else {}), **environment}
