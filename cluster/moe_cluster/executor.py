"""How a job gets to a cluster and what can be asked about it afterwards: one protocol, one line for each backend.

An executor keeps nothing between calls: what is known of a job stands in the run's folder (records.py) and with the
scheduler, so any machine that sees both can ask. Each is imported only when it is used.
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
    """What a scheduler says of a job, in words that all schedulers share."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"
    """The scheduler does not know the job (any more)."""

    @property
    def is_over(self) -> bool:
        """The job will not run (again)."""
        return self not in (JobState.PENDING, JobState.RUNNING)


@dataclass(frozen=True)
class JobStatus:
    """One answer of a scheduler."""

    state: JobState
    reason: str = ""
    """The scheduler's own words: why a job waits or how it ended."""
    nodes: tuple[str, ...] = ()
    restarts: int = 0
    """How often the scheduler started it again."""


class Executor(Protocol):
    """One cluster. Built as `Executor(options)` with the options of a JobSpec; raises JobError for what it cannot use.

    Every method but `render` talks to the scheduler, and raises ClusterError with its words if it refuses or cannot
    be reached.
    """

    def render(self, job: JobSpec) -> str:
        """Exactly what `submit` would hand over, as text; asks nobody, starts nothing."""
        ...

    def submit(self, job: JobSpec) -> str:
        """Hand the job over and return its id at once."""
        ...

    def submit_many(self, jobs: Sequence[JobSpec], at_once: int | None) -> Iterable[str]:
        """The jobs of a sweep, `at_once` of them at a time (None: as many as fit).

        Their ids come in order, each once its job is taken: if a later one is refused, the earlier ones run.
        """
        ...

    def status(self, job_id: str, run_dir: Path) -> JobStatus:
        """What the scheduler says of the job."""
        ...

    def logs(self, job_id: str, run_dir: Path, follow: bool) -> Iterator[str]:
        """Lines of the job's own output; with `follow`, until the job is over."""
        ...

    def cancel(self, job_id: str, run_dir: Path) -> None:
        """End the job; the run saves what it can in the time that the scheduler gives."""
        ...


def executor(kind: str, options: Mapping[str, str]) -> Executor:
    """The executor called `kind`. Raises JobError for a name that there is not."""
    if kind not in EXECUTORS:
        raise JobError(
            f"--cluster {kind}: there is no such backend; use one of {', '.join(sorted(EXECUTORS))}"
        )
    module, name = EXECUTORS[kind].split(":")
    return cast(Executor, getattr(importlib.import_module(module), name)(options))
