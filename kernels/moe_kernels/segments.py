"""The memory that the ranks of a group share, as one of them sees it: a segment of each rank, all of one size.

shared_memory.py makes them for ranks that run on the CPU, symmetric_memory.py for GPUs. What stands in a segment is
said in csrc/layout.h, and who may use which part of the rest, in slabs.py.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

HOST_FILE = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Segments:
    """Every rank's segment. Their control blocks are zero."""

    memory: Tensor
    """This rank's own, [size] uint8. Its storage keeps the segment, whatever becomes of this object."""
    addresses: list[int]
    """Where this process finds the segment of each rank."""
    rank: int
    processes: list[int]
    """Process id of each rank; 0: not to be watched."""
    mappings: Any
    """What keeps the peers' segments mapped."""

    @property
    def own(self) -> int:
        """Address of this rank's segment."""
        return self.addresses[self.rank]

    @property
    def size(self) -> int:
        """Bytes of a segment."""
        return self.memory.numel()


def host() -> str:
    """This machine, until it is started anew; empty where it does not tell."""
    with contextlib.suppress(OSError):
        return HOST_FILE.read_text(encoding="utf-8").strip()
    return ""
