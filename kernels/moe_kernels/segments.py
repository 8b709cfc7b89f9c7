"""Describes the memory that the ranks of a group share: one segment per rank, all of the same size.

shared_memory.py makes segments for ranks on the CPU, symmetric_memory.py for GPUs. csrc/layout.h documents their
content, and slabs.py who may use which part of the rest.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

HOST_FILE = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Segments:
    """Holds the segments of all ranks, whose control blocks are zero."""

    memory: Tensor
    """This rank's own, [size] uint8. Its storage keeps the segment alive independently of this object."""
    addresses: list[int]
    """Addresses of all ranks' segments in this process."""
    rank: int
    processes: list[int]
    """Process id of each rank; 0: not watched."""
    mappings: Any
    """Objects that keep the peers' segments mapped."""

    @property
    def own(self) -> int:
        """Address of this rank's segment."""
        return self.addresses[self.rank]

    @property
    def size(self) -> int:
        """Returns the number of bytes of a segment."""
        return self.memory.numel()


def host() -> str:
    """Identifies this machine until its next boot; empty if it has no boot id."""
    with contextlib.suppress(OSError):
        return HOST_FILE.read_text(encoding="utf-8").strip()
    return ""
