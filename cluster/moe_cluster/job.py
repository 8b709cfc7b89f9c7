"""What is asked of a launcher and of a cluster, as text and numbers: one attempt at a run, and a job that makes some.

A launcher (launcher.py) runs an Attempt where it is: on this host, in a Slurm allocation, on a Ray cluster. An executor
(executor.py) hands a JobSpec to a scheduler and returns; the job is then the command line of the spec, `moe-train run
...`, which finds the launcher named on it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from moe_cluster.contract import TRAINER_MODULE
from moe_cluster.errors import JobError

CPUS_PER_GPU = 8
"""A worker gets this many cores for each of its GPUs if its number of cores is not given."""
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
SECRET = re.compile(
    r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS|APIKEY|API_KEY|ACCESS_KEY|PRIVATE_KEY)(_|$)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Attempt:
    """One attempt: so many workers, each running `python -P -m MODULE ARGUMENTS`."""

    arguments: tuple[str, ...]
    """What follows the module on its command line; see `contract.trainer_arguments`."""
    workers: int
    """On all nodes together."""
    run_dir: Path
    number: int
    """Of the attempt, from 1; its folder exists."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Set for the workers in addition to what the launcher's own environment holds."""
    module: str = TRAINER_MODULE
    start_s: float = 300.0
    """The first worker must have read its recipe within this time (job.timeout_s)."""


@dataclass(frozen=True)
class Resources:
    """What a job needs of a cluster."""

    nodes: int = 1
    min_nodes: int | None = None
    """With fewer nodes than `nodes` the run goes on, down to so many; None: it does not."""
    workers_per_node: int = 1
    gpus_per_worker: int = 0
    cpus_per_worker: int | None = None
    """None: `cpus` says it."""
    memory_gib: float | None = None
    """Of a node; None: the cluster's default."""
    time_limit_min: int | None = None
    """Minutes after which the cluster ends the job; None: the cluster's default."""

    @property
    def cpus(self) -> int:
        """Cores of a worker. One that feeds a GPU needs several, or the GPU waits."""
        return self.cpus_per_worker or CPUS_PER_GPU * self.gpus_per_worker or 1

    @property
    def workers(self) -> int:
        """Workers of the job at its full size."""
        return self.nodes * self.workers_per_node


@dataclass(frozen=True)
class JobSpec:
    """A whole job: a command to run on a cluster, with what it needs there."""

    name: str
    run_dir: Path
    """Absolute; on a folder that all nodes see."""
    command: tuple[str, ...]
    """Arguments of `python -P -m moe_train.cli`, without the options that name the launcher and its size."""
    resources: Resources = Resources()
    environment: Mapping[str, str] = field(default_factory=dict)
    """Set for the job, and readable for whoever may read its script or its record."""
    options: Mapping[str, str] = field(default_factory=dict)
    """The executor's own, such as `partition` or `address`."""
    directives: tuple[str, ...] = ()
    """Lines for the scheduler as they are, without `#SBATCH`."""
    setup: tuple[str, ...] = ()
    """Lines of shell before the command, as they are: of the site's own file or the command line, never of a recipe."""
    after: tuple[str, ...] = ()
    """Ids of jobs that must have ended well before this one starts."""

    def __post_init__(self) -> None:
        """Raise JobError for a variable that has no such name, or whose name says that its value is a secret."""
        for name in self.environment:
            if not VARIABLE.fullmatch(name):
                raise JobError(f"environment {name!r}: is no name of a variable; use letters, digits and _")
            if SECRET.search(name):
                raise JobError(
                    f"environment {name}: looks like a secret, and what is written down for a cluster is no place "
                    "for one; set it where the job finds it: in the shell that submits (local, Slurm), or on the nodes "
                    "(Ray)"
                )
