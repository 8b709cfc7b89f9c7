"""A job that sends itself back to Slurm's queue, for other nodes: it has one of which a preflight found what Slurm does
not know.

A job's excluded nodes can be changed only while it waits, so it is queued and held, changed, and released, by processes
of its own that Slurm is about to end.
"""

import signal
from collections.abc import Callable, Mapping

from moe_cluster.errors import ClusterError
from moe_cluster.slurm.client import call, host_names
from moe_cluster.stop import StopRequest

TERM_COMES_S = 60.0
"""How long Slurm may take to tell a job that it is queued again."""


def queue_again_without(
    bad: Mapping[str, str], job_id: str, stop: StopRequest, say: Callable[[str], None]
) -> None:
    """Have Slurm queue the job again, for nodes other than these, and wait for the SIGTERM that comes of it.

    Raises ClusterError if the job was to be spared them already, or if Slurm refuses: then it stays held, since it
    would get the same nodes again and again.
    """
    excluded = host_names(call("squeue", "--noheader", "--jobs", job_id, "--format=%x").strip())
    if again := [node for node in bad if node in excluded]:
        raise ClusterError(
            f"slurm:{job_id}: got {again[0]} again, which it excludes; mend it: {bad[again[0]]}"
        )
    names = ",".join([*excluded, *bad])
    _scontrol("requeuehold", job_id)
    try:
        _scontrol("update", f"JobId={job_id}", f"ExcNodeList={names}")
    except ClusterError as error:
        raise ClusterError(
            f"slurm:{job_id}: is held, since it cannot exclude {names} ({error}); mend these nodes, then "
            f"`scontrol release {job_id}`"
        ) from None
    _scontrol("release", job_id)
    say(f"the job is queued again, for other nodes than {names}")
    stop.wait(TERM_COMES_S)  # the batch script hears it too, and knows that this is not its own to do


def _scontrol(*words: str) -> None:
    """Deaf, from its first moment, to the SIGTERM that Slurm sends to all processes of a job that is queued again."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # what is started inherits it
    try:
        call("scontrol", *words)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
