"""Defines the protocol by which jobs are submitted to a cluster and queried; each backend is one line.

An executor has no state between calls: all facts about a job are in the run's folder (records.py) and with the
scheduler, so any machine that sees both can ask. A backend is imported only when it is used.
"""

import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol, cast

from moe_cluster.errors import JobError
from moe_cluster.job import JobSpec

EXECUTORS: Mapping[str, str] = {
    "local": "moe_cluster.local.executor:LocalExecutor",
    "ray": "moe_cluster.ray.executor:RayExecutor",
    "slurm": "moe_cluster.slurm.executor:SlurmExecutor",
}


class JobState(StrEnum):
    """Lists the states of a job that all schedulers share."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"
    """The scheduler does not know the job (any more)."""

    @property
    def is_over(self) -> bool:
        """Returns whether the job has ended and will not run again."""
        return self not in (JobState.PENDING, JobState.RUNNING)


@dataclass(frozen=True)
class JobStatus:
    """Holds one answer of a scheduler."""

    state: JobState
    reason: str = ""
    """The scheduler's own words: why a job waits or how it ended."""
    nodes: tuple[str, ...] = ()
    restarts: int = 0
    """How often the scheduler restarted it."""


class Executor(Protocol):
    """Submits jobs to one cluster. `Executor(options)` takes the options of a JobSpec, or raises JobError.

    Every method but `render` calls the scheduler, and raises ClusterError with its message if it refuses or does not
    answer.
    """

    def render(self, job: JobSpec) -> str:
        """Returns exactly what `submit` would submit, as text; calls and starts nothing."""
        ...

    def submit(self, job: JobSpec) -> str:
        """Submit the job and return its id at once."""
        ...

    def submit_many(self, jobs: Sequence[JobSpec], at_once: int | None) -> Iterable[str]:
        """Submit the jobs of a sweep, of which at most `at_once` run concurrently (None: no limit).

        Returns their ids in order, each when its job is accepted: if a later one is refused, the earlier ones run.
        """
        ...

    def status(self, job_id: str, run_dir: Path) -> JobStatus:
        """Ask the scheduler for the job's status."""
        ...

    def logs(self, job_id: str, run_dir: Path, follow: bool) -> Iterator[str]:
        """Yield the lines of the job's own output; with `follow`, until the job ends."""
        ...

    def cancel(self, job_id: str, run_dir: Path) -> None:
        """Cancel the job; the run saves a checkpoint if the scheduler leaves it enough time."""
        ...


def executor(kind: str, options: Mapping[str, str]) -> Executor:
    """Returns the executor for `kind`. Raises JobError for an unknown name."""
    if kind not in EXECUTORS:
        raise JobError(
            f"--cluster {kind}: there is no such backend; use one of {', '.join(sorted(EXECUTORS))}"
        )
    module, name = EXECUTORS[kind].split(":")
    return cast(Executor, getattr(importlib.import_module(module), name)(options))
