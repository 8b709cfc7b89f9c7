"""How one attempt is run where the command stands: on this host, in a Slurm allocation, on a Ray cluster.

`moe-train run --launcher NAME` makes attempts one after the other; a launcher runs one, waits for its end and says how
it ended. Which nodes it uses is its business; a worker learns all it needs from `contract.py`.
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
    """How an attempt ended: an exit code of the contract, and who broke first if it failed."""

    exit_code: int
    first_cause: FirstCause | None = None
    resizes: bool = False
    """It was stopped, and saved, to go on at once with another number of workers."""


def outcome_of(folder: Path, exit_code: int) -> Outcome:
    """How the attempt in `folder` ended, from what its workers and torch elastic, which exited so, left there."""
    if exit_code == DONE:
        return Outcome(DONE)
    endings = read_endings(folder)
    if was_preempted(folder, endings):
        return Outcome(PREEMPTED)
    cause = find_first_cause(folder, endings)
    return Outcome(cause.exit_code, cause)


class Launcher(Protocol):
    """Runs attempts. Built as `Launcher(environment)`; raises JobError if it stands in the wrong place."""

    def choose_workers(
        self, run_dir: Path, allowed: Sequence[int], stop: StopRequest, say: Callable[[str], None]
    ) -> int | None:
        """How many workers the next attempt at the run in `run_dir` gets: one of `allowed`, ascending, as many as there
        is room for now on nodes that earlier attempts have not found unfit (`node/bad_nodes.py`).

        Waits where there is no room yet; None if it was asked to stop meanwhile. Raises ClusterError if there will be
        no room.
        """
        ...

    def run(self, attempt: Attempt, stop: StopRequest, say: Callable[[str], None]) -> Outcome:
        """Run one attempt and wait for its end; `say` is told what a person at the terminal should know.

        For the main thread only. Looks at `stop` all the while. Raises KeyboardInterrupt, all processes gone, when
        that becomes urgent.
        """
        ...

    def command(self, attempt: Attempt) -> str:
        """For a dry run: what would be started, as a line of text."""
        ...


def launcher(kind: str, environment: Mapping[str, str]) -> Launcher:
    """The launcher called `kind`. Raises JobError for a name that there is not, or in the wrong place."""
    if kind not in LAUNCHERS:
        raise JobError(
            f"--launcher {kind}: there is no such launcher; use one of {', '.join(sorted(LAUNCHERS))}"
        )
    module, name = LAUNCHERS[kind].split(":")
    return cast(Launcher, getattr(importlib.import_module(module), name)(environment))
