"""When a job that is started again and again, since it is stopped or loses its nodes, is not worth another attempt.

A launcher whose node dies tells nothing, and each new one begins to count afresh (`Restarts`). So the one that comes
after it leaves a note in the folder of the last attempt, and all of these are counted.
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
    """Why a job whose run was stopped is not queued again; empty if it is."""
    if stops_in_vain(run_dir) < MOST_STOPS:
        return ""
    return (
        f"the last {MOST_STOPS} attempts were each stopped before they saved anything new, so the job is not "
        "queued again; give it more time (--time-limit), or see why it is stopped so early"
    )


def lost_in_vain(folder: RunFolder) -> str:
    """For a launcher whose job the cluster has started again: note it, and say why it makes no attempt; else nothing.

    One loss, or one after something new was saved, is what a job is started again for. Raises RunError if the folder
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
        f"the cluster has started this job again {MOST_LOSSES} times in a row before anything new was saved, each time "
        f"since a node or the launcher was lost (attempts {', '.join(map(str, lost))}), so no further attempt is made, "
        f"which might take down another node; read the job's log and {attempt_dir(folder.path, lost[-1])}, see what "
        "became of these nodes (their memory, first of all), then go on with: "
        f"{shlex.join(['moe-train', 'resume', str(folder.path)])}"
    )
