"""Shares segments in the memory of a host: one anonymous file for each rank, mapped by all of them.

The file (`memfd_create`) has no name, so however a rank ends, the kernel frees it with its last mapping and nothing is
left behind. Peers open it through /proc while its owner still holds the descriptor. It is sparse: its size is address
space, and memory is allocated page by page as rows are written.
"""

import ctypes
import mmap
import os
import weakref
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from moe_kernels.agreement import gather, refuse
from moe_kernels.errors import KernelError
from moe_kernels.segments import Segments, host

MAP_NORESERVE, MADV_DONTDUMP = 0x4000, 16
MAP_FAILED = ctypes.c_void_p(-1).value


@dataclass(frozen=True)
class Offer:
    """Tells the other ranks about a rank's segment, or why it has none."""

    host: str
    pid: int
    descriptor: int
    inode: tuple[int, int]
    problem: str | None


def share(group: dist.ProcessGroup | None, size: int, problem: str | None = None) -> Segments:
    """Makes this rank's segment and maps those of all ranks. Collective over `group` (None: this process alone).

    A rank passes its own `problem`, if it has one. Raises KernelError, with the same message on every rank, if a rank
    has a problem, is on another host, or cannot open the segment of a peer.
    """
    descriptor = -1
    try:
        try:
            descriptor = os.memfd_create("moe_kernels")
            os.ftruncate(descriptor, size)
        except OSError as error:
            problem = problem or f"no shared memory: {error}"
        offers = gather(group, _offer(descriptor, problem))
        refuse([offer.problem for offer in offers])
        if len({offer.host for offer in offers}) > 1:
            raise KernelError("the ranks are not all on one host, so they share no memory")
        mappings: list[Tensor] = []
        try:
            mappings = [_map(offer, size) for offer in offers]
        except OSError as error:
            problem = f"the memory of a peer cannot be opened: {error}"
        # After this all ranks have mapped all segments, and descriptors may be closed.
        refuse(gather(group, problem))
        rank = dist.get_rank(group) if group is not None else 0
        return Segments(
            memory=mappings[rank],
            addresses=[mapping.data_ptr() for mapping in mappings],
            rank=rank,
            processes=[offer.pid for offer in offers],
            mappings=mappings,
        )
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _offer(descriptor: int, problem: str | None) -> Offer:
    status = os.fstat(descriptor) if descriptor >= 0 else None
    inode = (status.st_dev, status.st_ino) if status else (0, 0)
    return Offer(host(), os.getpid(), descriptor, inode, problem)


def _map(offer: Offer, size: int) -> Tensor:
    """Maps the segment of an offer; checks the inode, as in another PID namespace the path may be another file's."""
    descriptor = os.open(f"/proc/{offer.pid}/fd/{offer.descriptor}", os.O_RDWR)
    try:
        status = os.fstat(descriptor)
        if (status.st_dev, status.st_ino) != offer.inode:
            raise OSError(f"process {offer.pid} is a different one here; run the ranks in one container")
        return _mapped(descriptor, size)
    finally:
        os.close(descriptor)


def _mapped(descriptor: int, size: int) -> Tensor:
    """Maps a file as bytes, until nothing refers to them any more."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *([ctypes.c_int] * 3), ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    access, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | MAP_NORESERVE
    address = libc.mmap(None, size, access, flags, descriptor, 0)
    if address == MAP_FAILED:
        raise OSError(ctypes.get_errno(), f"mmap of {size / 2**30:.0f} GiB of address space")
    libc.madvise(address, size, MADV_DONTDUMP)
    memory = (ctypes.c_uint8 * size).from_address(address)
    weakref.finalize(memory, libc.munmap, address, size).atexit = False
    return torch.frombuffer(memory, dtype=torch.uint8)
