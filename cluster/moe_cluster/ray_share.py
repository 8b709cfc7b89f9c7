"""What one worker on a Ray cluster needs, as it travels from the executor to the launcher; what Ray is told besides.

Without Ray, so that a job can be rendered at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass

SHARE_VARIABLE = "MOE_TRAIN_RAY_SHARE"
"""A Share, as JSON; absent: a CPU for each worker."""

SETTINGS: Mapping[str, str] = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # between two looks of Ray Train at its workers
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "30",  # a worker's actor that does not answer is lost
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # an actor more, for restarts that are not Ray Train's here
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_DEDUP_LOGS": "0",  # lines that look alike are lines of a log all the same
}
"""Read by Ray from the environment of a job's processes."""


@dataclass(frozen=True)
class Share:
    """What one worker needs, and how many of them a node may hold."""

    resources: Mapping[str, float]
    """In Ray's names: CPU, GPU, memory (bytes)."""
    per_node: int = 1_000_000
