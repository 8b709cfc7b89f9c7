"""One worker of each host goes first: what it builds on the host's disk, its neighbours then find there.

They wait for a file lock rather than in a collective: a build may take longer than any collective is given, and the
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
    """A block that local rank 0 of each host runs first, and its neighbours when that one has left it.

    `folder` is one that all workers of a host can write to. Entering is collective, and quick for local rank 0.
    """
    if world.size == 1:
        yield
        return
    leader = world.rank - world.local_rank
    lock = os.open(folder / f"first-{leader}.lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if world.local_rank == 0:
            fcntl.flock(lock, fcntl.LOCK_EX)
        world.barrier()  # from here on, whoever has to wait finds the lock taken
        if world.local_rank != 0:
            fcntl.flock(lock, fcntl.LOCK_SH)
        yield
    finally:
        os.close(lock)
