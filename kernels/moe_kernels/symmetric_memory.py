"""Shares segments in the memory of GPUs, which the GPUs of a host access directly: torch's symmetric memory.

It is memory, not address space: every byte is taken when the segments are made. Of torch's two ways to allocate, this
takes the plain one. The other goes through a pool of the caching allocator, whose blocks may differ between ranks that
have a different past. It was seen to work, with torch 2.11, between processes that share one GPU, not between several.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C import _distributed_c10d as c10d

from moe_kernels.agreement import gather, refuse
from moe_kernels.errors import KernelError
from moe_kernels.segments import Segments, host

BACKEND = "CUDA"
"""Of torch's backends the one whose allocations are a rank's own business, and whose rendezvous is its group's."""


def share(
    group: dist.ProcessGroup | None,
    size: int,
    control_bytes: int,
    device: torch.device,
    problem: str | None = None,
) -> Segments:
    """Makes this rank's segment on `device` and maps those of all ranks. Collective (group None: this process alone).

    Its first `control_bytes` are zero when this returns on any rank. A rank with a `problem` of its own says so here.
    Raises KernelError, on every rank with the same words, where a rank has a problem or too little memory, is on
    another host, or its GPU does not reach the others.
    """
    memory = torch.empty(0, dtype=torch.uint8)
    if group is not None:
        problem = problem or _no_backend(device)
    if problem is None:
        try:
            memory = _allocate(size, device, is_alone=group is None)
            memory[:control_bytes].zero_()
        except RuntimeError as error:
            problem = (
                f"{size / 2**30:.2f} GiB that other GPUs can reach are not to be had on {device}; lower slab_bytes "
                f"or num_slabs ({_first_line(error)})"
            )
    offers = gather(group, (host(), problem))
    refuse([problem for _, problem in offers])
    if len({name for name, _ in offers}) > 1:
        raise KernelError("the ranks are not all on one host, so their GPUs share no memory")
    if group is None:
        return Segments(memory, [memory.data_ptr()], 0, [0], None)
    mappings = None
    try:
        mappings = c10d._SymmetricMemory.rendezvous(memory, group.group_name)
        _finish(device)
    except RuntimeError as error:
        problem = f"the GPUs do not reach each other's memory: {_first_line(error)}"
    refuse(gather(group, problem))  # after this all control blocks are zero, and all are mapped
    assert mappings is not None
    addresses, rank = list(mappings.buffer_ptrs), dist.get_rank(group)
    assert addresses[rank] == memory.data_ptr()
    # A process id of 0: the kernels do not look whether a peer is still there, they wait for it and time out.
    return Segments(memory, addresses, rank, [0] * len(addresses), mappings)


def _no_backend(device: torch.device) -> str | None:
    """Returns why this process cannot share memory of `device`, as far as it can tell alone."""
    backend = c10d._SymmetricMemory.get_backend(device)
    if backend == BACKEND:
        return None
    return f"torch's symmetric memory is {backend} for {device}, and must be {BACKEND}; unset TORCH_SYMMMEM"


def _allocate(size: int, device: torch.device, *, is_alone: bool) -> Tensor:
    """Allocates memory for a segment, uninitialised. Raises RuntimeError."""
    if is_alone:
        return torch.empty(size, dtype=torch.uint8, device=device)
    return c10d._SymmetricMemory.empty_strided_p2p((size,), (1,), torch.uint8, device)


def _finish(device: torch.device) -> None:
    """Waits until the zeros are written."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
