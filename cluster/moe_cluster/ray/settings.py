"""Lists Ray's settings in the environment of a job's processes. Imports no Ray, so a job is rendered at once."""

from collections.abc import Mapping

SETTINGS: Mapping[str, str] = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # between two looks of Ray Train at its workers
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "30",  # a worker's actor that does not answer is lost
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # an actor more, for restarts that are not Ray Train's here
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_DEDUP_LOGS": "0",  # lines that look alike are lines of a log all the same
}
