"""Defines the protocol by which one attempt is run: on this host, in a Slurm allocation, on a Ray cluster.

`moe-train run --launcher NAME` makes attempts one after the other; a launcher runs one, waits for its end and returns
its outcome. The launcher chooses the nodes; workers get all they need through `contract.py`.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from moe_cluster.contract import DONE, PREEMPTED
from moe_cluster.errors import JobError
from moe_cluster.job import Attempt
from moe_cluster.stop import StopRequest
from moe_cluster.watch.first_cause import FirstCause, find_first_cause, read_endings, was_preempted

LAUNCHERS: Mapping[str, str] = {
    "local": "moe_cluster.local.launcher:LocalLauncher",
    "ray": "moe_cluster.ray.launcher:RayLauncher",
    "slurm": "moe_cluster.slurm.launcher:SlurmLauncher",
}


@dataclass(frozen=True)
class Outcome:
    """Holds how an attempt ended: an exit code of the contract, and the first cause if it failed."""

    exit_code: int
    first_cause: FirstCause | None = None
    resizes: bool = False
    """It was stopped and saved, to continue at once with another number of workers."""


def outcome_of(folder: Path, exit_code: int) -> Outcome:
    """Returns how the attempt in `folder` ended, from the files of its workers and torch elastic's `exit_code`."""
    if exit_code == DONE:
        return Outcome(DONE)
    endings = read_endings(folder)
    if was_preempted(folder, endings):
        return Outcome(PREEMPTED)
    cause = find_first_cause(folder, endings)
    return Outcome(cause.exit_code, cause)


class Launcher(Protocol):
    """Runs attempts. `Launcher(environment)` raises JobError if it cannot run where the command is."""

    def choose_workers(
        self, run_dir: Path, allowed: Sequence[int], stop: StopRequest, say: Callable[[str], None]
    ) -> int | None:
        """Returns the number of workers of the next attempt at the run in `run_dir`: the largest of `allowed`, which
        ascends, for which there is room now on nodes that no earlier attempt found unfit (`node/bad_nodes.py`).

        Waits for room; returns None if a stop is requested meanwhile. Raises ClusterError if there will be no room.
        """
        ...

    def run(self, attempt: Attempt, stop: StopRequest, say: Callable[[str], None]) -> Outcome:
        """Run one attempt and wait for its end; `say` prints messages for the user.

        Runs in the main thread only, and watches `stop`. Raises KeyboardInterrupt, after ending all processes, if that
        becomes urgent.
        """
        ...

    def command(self, attempt: Attempt) -> str:
        """Returns what would be started, as a line of text for a dry run."""
        ...


def launcher(kind: str, environment: Mapping[str, str]) -> Launcher:
    """Returns the launcher for `kind`. Raises JobError for an unknown name, or if it cannot run here."""
    if kind not in LAUNCHERS:
        raise JobError(
            f"--launcher {kind}: there is no such launcher; use one of {', '.join(sorted(LAUNCHERS))}"
        )
    module, name = LAUNCHERS[kind].split(":")
    return cast(Launcher, getattr(importlib.import_module(module), name)(environment))
