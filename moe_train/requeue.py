"""Decides when a job that is stopped or loses its nodes again and again gets no further attempt.

A launcher whose node dies records nothing, and its successor starts counting at 0 (`Restarts`). So the successor
records the loss in the folder of the last attempt, and these records are counted.
"""

import shlex
from pathlib import Path

from moe_cluster.contract import attempt_dir
from moe_cluster.restarts import MOST_LOSSES, MOST_STOPS, lost_attempts, record_loss, stops_in_vain
from moe_train.checkpoint.folder import CheckpointFolder
from moe_train.checkpoint.lineage import newest_attempt, newest_writer
from moe_train.errors import RunError
from moe_train.run_folder import RunFolder


def stopped_in_vain(run_dir: Path) -> str:
    """Returns why a job whose run was stopped is not requeued; empty if it is."""
    if stops_in_vain(run_dir) < MOST_STOPS:
        return ""
    return (
        f"the last {MOST_STOPS} attempts were each stopped before they saved anything new, so the job is not "
        "queued again; give it more time (--time-limit), or find out why it is stopped so early"
    )


def lost_in_vain(folder: RunFolder) -> str:
    """Record that the cluster restarted the launcher's job; returns why it makes no further attempt, or "".

    Fewer than MOST_LOSSES losses, or a new checkpoint since, allow another attempt. Raises RunError if the folder
    cannot be written, CheckpointError if its checkpoints cannot be listed.
    """
    last = newest_attempt(folder.path)
    try:
        if last:
            record_loss(folder.path, last, folder.job)
    except OSError as error:
        raise RunError.unwritable(folder.path, error) from None
    lost = lost_attempts(folder.path, folder.job)[-MOST_LOSSES:]
    if len(lost) < MOST_LOSSES or newest_writer(CheckpointFolder(folder.path)) >= lost[0]:
        return ""
    return (
        f"the cluster has restarted this job {MOST_LOSSES} times in a row before anything new was saved, each time "
        f"because a node or the launcher was lost (attempts {', '.join(map(str, lost))}); no further attempt is made, "
        f"because it might take down another node; read the job's log and {attempt_dir(folder.path, lost[-1])}, check "
        "these nodes (first of all, whether they ran out of memory), then resume with: "
        f"{shlex.join(['moe-train', 'resume', str(folder.path)])}"
    )
