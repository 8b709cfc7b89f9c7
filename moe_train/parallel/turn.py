"""Lets one worker of each host go first and build what its neighbours then find on the host's disk.

They wait for a file lock rather than in a collective: a build may take longer than a collective's timeout, and the
kernel releases the lock when its holder dies.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moe_train.parallel.world import World


@contextmanager
def first_of_host(world: World, folder: Path) -> Iterator[None]:
    """Runs a block first on local rank 0 of each host, and on its neighbours when that one has left it.

    All workers of a host must be able to write to `folder`. Entering is collective, and quick for local rank 0.
    """
    if world.size == 1:
        yield
        return
    leader = world.rank - world.local_rank
    lock = os.open(folder / f"first-{leader}.lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if world.local_rank == 0:
            fcntl.flock(lock, fcntl.LOCK_EX)
        world.barrier()  # from here on, local rank 0 holds the lock
        if world.local_rank != 0:
            fcntl.flock(lock, fcntl.LOCK_SH)
        yield
    finally:
        os.close(lock)
