"""Requeues a Slurm job from inside, to replace nodes that a preflight found unfit.

A job's excluded nodes can be changed only while it is pending, so it is requeued and held, changed, and released, by
its own processes, which Slurm is about to end.
"""

import signal
from collections.abc import Callable, Mapping

from moe_cluster.errors import ClusterError
from moe_cluster.slurm.client import call, host_names
from moe_cluster.stop import StopRequest

TERM_COMES_S = 60.0
"""How long Slurm may take to send SIGTERM to a requeued job."""


def queue_again_without(
    bad: Mapping[str, str], job_id: str, stop: StopRequest, say: Callable[[str], None]
) -> None:
    """Requeue the job with these nodes excluded, and wait for the SIGTERM that follows.

    Raises ClusterError if they were excluded already, or if Slurm refuses: the job then stays held, because it would
    get the same nodes again and again.
    """
    excluded = host_names(call("squeue", "--noheader", "--jobs", job_id, "--format=%x").strip())
    if again := [node for node in bad if node in excluded]:
        raise ClusterError(
            f"slurm:{job_id}: got {again[0]} again, although it excludes that node; repair it: {bad[again[0]]}"
        )
    names = ",".join([*excluded, *bad])
    _scontrol("requeuehold", job_id)
    try:
        _scontrol("update", f"JobId={job_id}", f"ExcNodeList={names}")
    except ClusterError as error:
        raise ClusterError(
            f"slurm:{job_id}: is held, because it cannot exclude {names} ({error}); repair these nodes, then run "
            f"`scontrol release {job_id}`"
        ) from None
    _scontrol("release", job_id)
    say(f"the job is queued again, with {names} excluded")
    stop.wait(TERM_COMES_S)  # the batch script gets it too, and so does not requeue the job a second time


def _scontrol(*words: str) -> None:
    """Run scontrol with SIGTERM blocked, which Slurm sends to all processes of a requeued job."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # scontrol inherits it
    try:
        call("scontrol", *words)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
