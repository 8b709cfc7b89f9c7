"""Compares the workers of a run, and tries their nodes and the network, before the workers are a process group.

`moe_cluster` has the tests of nodes; `job.preflight` says which of them run.
"""

import logging
from pathlib import Path

from moe_cluster.errors import ClusterError, JobError
from moe_cluster.node.check import check_node
from moe_cluster.node.preflight import preflight
from moe_train.config.schema import Recipe
from moe_train.errors import RunError, UsageError
from moe_train.parallel.alike import require_alike
from moe_train.parallel.world import Meeting

log = logging.getLogger(__name__)


def try_workers(recipe: Recipe, run_dir: Path, attempt: int, workers: Meeting) -> None:
    """Compares recipe and versions of all workers, then tries what the recipe asks for; on one node the node alone.

    Raises RunError for a fault of nodes or network, and UsageError for one that another attempt would find again.
    """
    try:
        require_alike(recipe, workers)
        _try_nodes(recipe, run_dir, attempt, workers)
    except JobError as error:
        raise UsageError(str(error)) from None
    except ClusterError as error:
        raise RunError(str(error)) from None


def _try_nodes(recipe: Recipe, run_dir: Path, attempt: int, workers: Meeting) -> None:
    job = recipe.job
    if job.preflight == "never":
        return
    if workers.store is None or (job.preflight == "auto" and workers.is_one_host):
        if workers.rank == 0:
            check_node(run_dir, attempt, workers.size, workers.use_cuda, log.info)
        return
    preflight(
        workers.store,
        workers.rank,
        workers.size,
        workers.local_rank,
        run_dir,
        attempt,
        job.timeout_s,
        log.info,
    )
