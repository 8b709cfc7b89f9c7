"""Describes what a launcher runs, an Attempt, and what a cluster runs, a job that makes attempts.

A launcher (launcher.py) runs an Attempt where it is: on this host, in a Slurm allocation, on a Ray cluster. An executor
(executor.py) submits a JobSpec to a scheduler and returns; the job runs the spec's command line, `moe-train run ...`,
which names the launcher.
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
    """Describes one attempt: `workers` processes, each running `python -P -m MODULE ARGUMENTS`."""

    arguments: tuple[str, ...]
    """Arguments after the module on its command line; see `contract.trainer_arguments`."""
    workers: int
    """On all nodes together."""
    run_dir: Path
    number: int
    """Of the attempt, from 1; its folder exists."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Set for the workers in addition to the launcher's own environment."""
    module: str = TRAINER_MODULE
    start_s: float = 300.0
    """The first worker must have read its recipe within this time (job.timeout_s)."""


@dataclass(frozen=True)
class Resources:
    """Describes the resources that a job needs."""

    nodes: int = 1
    min_nodes: int | None = None
    """The least number of nodes with which the run continues; None: all of them."""
    workers_per_node: int = 1
    gpus_per_worker: int = 0
    cpus_per_worker: int | None = None
    """None: see `cpus`."""
    memory_gib: float | None = None
    """Memory of a node; None: the cluster's default."""
    time_limit_min: int | None = None
    """Minutes after which the cluster ends the job; None: the cluster's default."""

    @property
    def cpus(self) -> int:
        """Returns the cores of a worker. One that feeds a GPU needs several, or the GPU waits."""
        return self.cpus_per_worker or CPUS_PER_GPU * self.gpus_per_worker or 1

    @property
    def workers(self) -> int:
        """Returns the number of workers of the job at its full size."""
        return self.nodes * self.workers_per_node


@dataclass(frozen=True)
class JobSpec:
    """Describes a whole job: a command to run on a cluster, with its resources and environment."""

    name: str
    run_dir: Path
    """Absolute; on a folder that all nodes see."""
    command: tuple[str, ...]
    """Arguments of `python -P -m moe_train.cli`, without the options that name the launcher and its size."""
    resources: Resources = Resources()
    environment: Mapping[str, str] = field(default_factory=dict)
    """Set for the job, and visible to everyone who can read its script or its record."""
    options: Mapping[str, str] = field(default_factory=dict)
    """The executor's own, such as `partition` or `address`."""
    directives: tuple[str, ...] = ()
    """Lines passed to the scheduler unchanged, without `#SBATCH`."""
    setup: tuple[str, ...] = ()
    """Shell commands to run before the command, from the site's own file or the command line, never from a recipe."""
    after: tuple[str, ...] = ()
    """Ids of jobs that must succeed before this one starts."""

    def __post_init__(self) -> None:
        """Raise JobError for an invalid name of a variable, or one that looks like a secret."""
        for name in self.environment:
            if not VARIABLE.fullmatch(name):
                raise JobError(
                    f"environment {name!r}: is not a valid name of a variable; use letters, digits and _"
                )
            if SECRET.search(name):
                raise JobError(
                    f"environment {name}: looks like a secret, which must not be written to a job's script or record; "
                    "set it in the shell that submits (local, Slurm), or on the nodes (Ray)"
                )
