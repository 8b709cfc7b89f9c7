"""Runs Ray on one node of a Slurm job: `python -P -m moe_cluster.ray.node NAME RAY...`, started by in_slurm.py.

RAY, a `ray start --block` without a folder, gets its own below /tmp, and runs until standard input ends. Then all its
processes are killed and the folder is removed. Slurm signals every process of a job that it is about to end; Ray would
end at once, and with it the workers before they have saved. So signals are blocked here, also for all of Ray, and only
reported: the launcher decides when Ray ends.
"""

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from moe_cluster.contract import DONE, FAILED
from moe_cluster.linux import adopt_orphans, end_children
from moe_cluster.output import protect_output

TOLD = "moe-train: this node is told to end"
"""Printed when a signal comes: Slurm may signal the steps of a job earlier than its script."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
POLL_S = 0.2
MOST_RESTARTS = 5
"""The limit of restarts of a Ray that exited by itself, e.g. because its raylet was killed for lack of memory."""
FOLDERS = "/tmp"
"""Not TMPDIR: Ray's sockets lie in it, and their paths must not be longer than 107 bytes."""


def main(name: str, ray: Sequence[str]) -> int:
    """Run `ray` until standard input ends; returns DONE, or the exit code of a Ray that exited by itself.

    Ray on a node other than the head is restarted if it exits by itself.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    adopt_orphans()
    for left in range(MOST_RESTARTS, -1, -1):
        code = _run(name, ray)
        if code == DONE or "--head" in ray or not left:
            return code
        print(f"moe-train: Ray on this node has ended with {code}, and is started again", flush=True)
    raise AssertionError


def _run(name: str, ray: Sequence[str]) -> int:
    # The folder is private to this user, and its name is new.
    folder = tempfile.mkdtemp(prefix=f"{name}-", dir=FOLDERS)
    inner = os.path.join(folder, "r")  # Ray opens its folder to everyone
    try:
        # Ray starts some of its processes with `python -m`, which would import a queue.py of the user's directory.
        return _wait(subprocess.Popen([*ray, f"--temp-dir={inner}"], stdin=subprocess.DEVNULL, cwd=folder))
    finally:
        end_children(set(), 0.0)
        shutil.rmtree(folder, ignore_errors=True)


def _wait(ray: "subprocess.Popen[bytes]") -> int:
    while (code := ray.poll()) is None:
        if signal.sigtimedwait(SIGNALS, 0.0):
            print(TOLD, flush=True)
        if select.select([sys.stdin], [], [], POLL_S)[0] and not os.read(sys.stdin.fileno(), 1024):
            return DONE
    return code or FAILED


if __name__ == "__main__":
    protect_output(is_result=False)
    sys.exit(main(sys.argv[1], sys.argv[2:]))
