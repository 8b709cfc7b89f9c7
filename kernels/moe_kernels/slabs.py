"""Lends the slabs of a rank's segment as tensors, and takes them back when the tensor is no longer referenced.

All slabs have the same size, so any slab fits any rows, and the one written last is reused next, whatever the shapes.
A slab that is freed after operation m may still be read by a peer that is in m; it is reused only after m + 1 has been
issued too (the proof is in kernels/README.md).

On CUDA operations are counted when they are enqueued, and nothing waits for their end. The rule still holds if
everything that touches slabs is enqueued on one stream, as an exchange requires: work on a reused slab then runs after
operation m + 1, as on the CPU. A CUDA graph repeats what it captured, so a slab taken during the capture stays its own.
"""

import weakref

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack, to_dlpack

from moe_kernels.errors import KernelError
from moe_kernels.launch import is_capturing
from moe_kernels.segments import Segments

UNUSED = -1


class SlabPool:
    """Manages slabs of `slab_bytes` each, from the offset `first` in this rank's segment to the segment's end."""

    def __init__(self, segments: Segments, first: int, slab_bytes: int):
        self.segments = segments  # kept alive by every slab that is in use
        self.first, self.slab_bytes = first, slab_bytes
        self.num_slabs = (segments.size - first) // slab_bytes
        self.issued = 0
        """Number of operations that this rank has issued; the exchange counts them."""
        # (operations issued when it was freed, offset), the latest last
        self._freed: list[tuple[int, int]] = []
        self.num_touched = 0

    def empty(self, num_rows: int, width: int, dtype: torch.dtype) -> Tensor:
        """Returns uninitialised rows [num_rows, width] in a slab of their own.

        Raises KernelError if they do not fit into a slab, or all slabs are in use.
        """
        memory, num_bytes = self.segments.memory, num_rows * width * dtype.itemsize
        if num_bytes > self.slab_bytes:
            raise KernelError(
                f"{num_rows} rows of {width} {dtype} need {num_bytes} bytes, but a slab has {self.slab_bytes}; "
                "lower the capacity"
            )
        if num_bytes == 0:
            return torch.empty(num_rows, width, dtype=dtype, device=memory.device)
        offset = self._take()
        lease = memory[offset : offset + num_bytes].view(dtype).view(num_rows, width)
        if not is_capturing(memory.device):
            weakref.finalize(lease, self._release, offset, self.issued).atexit = False
        # The same memory as a tensor with its own storage. The storage keeps `lease` alive, and all views of the
        # tensor keep the storage alive.
        return from_dlpack(to_dlpack(lease))

    def offset_of(self, rows: Tensor) -> int | None:
        """Returns the offset of `rows` in this rank's segment; None if they are elsewhere or unsuitable."""
        offset = rows.data_ptr() - self.segments.own
        inside = self.first <= offset < self.segments.size and offset % 256 == 0
        return offset if inside and rows.is_contiguous() else None

    def _take(self) -> int:
        for place in range(len(self._freed) - 1, -1, -1):
            freed_at, offset = self._freed[place]
            if freed_at < self.issued:
                del self._freed[place]
                return offset
        if self.num_touched == self.num_slabs:
            raise KernelError(f"all {self.num_slabs} slabs are in use; release the results of earlier steps")
        self.num_touched += 1
        return self.first + (self.num_touched - 1) * self.slab_bytes

    def _release(self, offset: int, issued: int) -> None:
        """Only appends, since it is called wherever the last reference goes, even in the middle of `_take`."""
        self._freed.append((UNUSED if issued == self.issued else self.issued, offset))
