"""Tries the nodes of a run, and the network between them, before its workers are a process group.

`moe_cluster` has the tests; `job.preflight` says which of them run.
"""

import logging
from pathlib import Path

from moe_cluster.errors import ClusterError, JobError
from moe_cluster.node.check import check_node
from moe_cluster.node.preflight import preflight
from moe_train.config.schema import JobConfig
from moe_train.errors import RunError, UsageError
from moe_train.parallel.world import Meeting

log = logging.getLogger(__name__)


def try_nodes(job: JobConfig, run_dir: Path, attempt: int, workers: Meeting) -> None:
    """Tries what the recipe asks for; on one node that is the node alone.

    Raises RunError for a fault of nodes or network, and UsageError for one that another attempt would find again.
    """
    if job.preflight == "never":
        return
    try:
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
    except JobError as error:
        raise UsageError(str(error)) from None
    except ClusterError as error:
        raise RunError(str(error)) from None
