"""Builds a JobSpec for `submit`, `resume` and `sweep` from their options and the site's defaults."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from moe_cluster.executor import EXECUTORS, Executor, executor
from moe_cluster.job import VARIABLE, JobSpec, Resources
from moe_cluster.records import JobRecord
from moe_cluster.sites import Site, Sites
from moe_train.arguments import count, count_or_range, gibibytes, minutes, positive
from moe_train.config.check import problems
from moe_train.config.problem import Problem
from moe_train.config.schema import Recipe
from moe_train.errors import UsageError
from moe_train.jobs.text import require_text
from moe_train.launch import allowed_workers

DEFAULT_RESTARTS = 3
Value = TypeVar("Value")


@dataclass(frozen=True)
class Request:
    """Describes how a job runs, independent of its recipe."""

    cluster: str
    resources: Resources
    options: Mapping[str, str]
    directives: tuple[str, ...]
    environment: Mapping[str, str]
    setup: tuple[str, ...]
    """These three do not include the site's own, which are in `site`."""
    site: Site
    max_restarts: int

    @property
    def executor(self) -> Executor:
        """Returns the backend. Raises JobError for options that it does not support."""
        return executor(self.cluster, self.options)

    def spec(
        self, recipe: Recipe, recipe_file: Path, run_dir: Path, resume: str, after: Sequence[str]
    ) -> JobSpec:
        """Returns the job that trains `recipe`, which is written to `recipe_file`.

        Raises RecipeError, LayoutError, DataError or UsageError if it cannot run.
        """
        size, least = self.resources, self.resources.min_nodes
        least_workers = None if least is None else least * size.workers_per_node
        allowed = allowed_workers(recipe, size.workers, least_workers)
        if least_workers is not None and allowed[0] > least_workers:
            raise UsageError(_too_few_nodes(size, allowed[0], problems(recipe, least_workers)))
        require_text(recipe, self.cluster)
        if recipe.job.device == "cuda" and self.cluster != "local" and size.gpus_per_worker == 0:
            raise UsageError("job.device=cuda: needs a GPU per worker; add --gpus-per-worker 1")
        workers = str(size.workers) if least_workers is None else f"{least_workers}:{size.workers}"
        words = ["run", str(recipe_file), "--run-dir", str(run_dir), "--resume", resume, "--workers", workers]
        return JobSpec(
            name=recipe.name,
            run_dir=run_dir,
            command=(*words, "--max-restarts", str(self.max_restarts)),
            resources=size,
            environment={**self.site.environment, **self.environment},
            options=self.options,
            directives=(*self.site.directives, *self.directives),
            setup=(*self.site.setup, *self.setup),
            after=tuple(after),
        )


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a Request; those not given come from the last job, the site, or a default."""
    group = parser.add_argument_group("cluster and resources")
    group.add_argument(
        "--cluster", choices=sorted(EXECUTORS), help="backend (default: that of the site file, or local)"
    )
    _add_resources(group)
    group.add_argument(
        "--max-restarts", type=count, metavar="N", help=f"as for run (default: {DEFAULT_RESTARTS})"
    )
    _add_settings(group)
    group.add_argument(
        "--dry-run", action="store_true", help="print what would be submitted; submit and write nothing"
    )


def _add_resources(group: argparse._ArgumentGroup) -> None:
    """Add the options for Resources."""
    group.add_argument(
        "--nodes",
        type=_nodes,
        metavar="N",
        help="number of nodes; MIN:MAX: continue on fewer if some are lost",
    )
    group.add_argument("--workers-per-node", type=positive, metavar="N", help="(default: 1)")
    group.add_argument("--gpus-per-worker", type=count, metavar="N", help="(default: 0)")
    group.add_argument(
        "--cpus-per-worker", type=positive, metavar="N", help="(default: 1; on Slurm 8 per GPU)"
    )
    group.add_argument(
        "--memory", type=gibibytes, metavar="GIB", help="memory per node (default: the cluster's)"
    )
    group.add_argument(
        "--time-limit",
        type=minutes,
        metavar="TIME",
        help="90 (minutes), 12h, 2d, or in Slurm's format, 24:00:00, 1-12:00:00 (default: the cluster's)",
    )


def _add_settings(group: argparse._ArgumentGroup) -> None:
    """Add the options for what a site file may set too: the backend's options, directives, environment, setup."""
    group.add_argument(
        "--option",
        action="append",
        type=_pair,
        default=[],
        metavar="KEY=VALUE",
        help="option of the backend, e.g. partition=gpu, address=http://head:8265; may be repeated",
    )
    group.add_argument("--address", metavar="URL", help="short for --option address=URL")
    group.add_argument(
        "--directive",
        action="append",
        default=[],
        metavar="TEXT",
        help="line passed to the scheduler unchanged, e.g. --directive=--mail-type=END; may be repeated",
    )
    group.add_argument(
        "--env",
        action="append",
        type=_variable,
        default=[],
        metavar="NAME=VALUE",
        help="environment variable of the job, visible to anyone who can read its script; may be repeated",
    )
    group.add_argument(
        "--setup",
        action="append",
        type=_line,
        default=[],
        metavar="LINE",
        help="shell command to run before the job's, e.g. 'module load cuda'; may be repeated",
    )


def request(
    options: argparse.Namespace, sites: Sites, last: JobRecord | None = None, workers: int = 1
) -> Request:
    """Combine the options with those of the run's last job and the site's defaults, in this order of precedence.

    `workers`: the run's number of workers so far, used if it has had no job on this cluster.
    """
    cluster = options.cluster or (last.cluster if last else sites.default)
    before = last if last and last.cluster == cluster else None
    site, sizes = sites.of(cluster), before.resources if before else Resources()
    least, nodes = options.nodes or (sizes.min_nodes, sizes.nodes)
    if before is None:
        sizes = replace(sizes, workers_per_node=max(1, workers // nodes))
    backend_options = dict(options.option) | ({"address": options.address} if options.address else {})
    return Request(
        cluster=cluster,
        resources=Resources(
            nodes=nodes,
            min_nodes=least,
            workers_per_node=_first(options.workers_per_node, sizes.workers_per_node),
            gpus_per_worker=_first(options.gpus_per_worker, sizes.gpus_per_worker),
            cpus_per_worker=_first(options.cpus_per_worker, sizes.cpus_per_worker),
            memory_gib=_first(options.memory, sizes.memory_gib),
            time_limit_min=_first(options.time_limit, sizes.time_limit_min),
        ),
        options={**site.options, **(before.options if before else {}), **backend_options},
        directives=tuple(options.directive) or (before.directives if before else ()),
        environment={**(before.environment if before else {}), **dict(options.env)},
        setup=tuple(options.setup) or (before.setup if before else ()),
        site=site,
        max_restarts=_first(options.max_restarts, before.max_restarts if before else DEFAULT_RESTARTS),
    )


def _first(value: Value | None, otherwise: Value) -> Value:
    return otherwise if value is None else value


def _too_few_nodes(size: Resources, needed: int, reasons: Sequence[Problem]) -> str:
    """Returns the message for a least number of nodes on which the run cannot train, as it needs so many workers."""
    nodes = -(-needed // size.workers_per_node)
    fits = f"{nodes}:{size.nodes}" if nodes < size.nodes else str(size.nodes)
    return (
        f"--nodes {size.min_nodes}:{size.nodes}: the run cannot continue on {size.min_nodes} x --workers-per-node "
        f"{size.workers_per_node} workers, for it needs at least {needed} ({'; '.join(map(str, reasons))}); use "
        f"--nodes {fits}"
    )


def _nodes(text: str) -> tuple[int | None, int]:
    """Parse MIN:MAX into (MIN, MAX), and N into (None, N)."""
    *least, most = count_or_range(text)
    return (least[0] if least else None), most


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError(f"{text} is not KEY=VALUE")
    return key, value


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not VARIABLE.fullmatch(name):
        raise argparse.ArgumentTypeError(f"{text} is not NAME=VALUE with a NAME of letters, digits and _")
    return name, value


def _line(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("must not be empty; give a shell command, or omit the option")
    return text
