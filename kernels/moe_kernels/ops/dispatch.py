"""Defines moe_kernels::dispatch, which writes every edge's row into its slot at the rank of its expert.

T tokens of this rank, K choices, D width, L local experts, C capacity. `control` is never written: that it says so
keeps compilers from moving, merging or dropping operations, which all ranks must issue in the same order. On CUDA no
operator of the exchange waits for the device.
"""

import torch
from torch import Tensor

from moe_kernels.errors import KernelError
from moe_kernels.library import DISPATCH
from moe_kernels.registry import exchange_of

torch.library.define(
    "moe_kernels::dispatch",
    "(int exchange, Tensor(a!) control, Tensor x, Tensor expert_ids, SymInt capacity)"
    " -> (Tensor rows, Tensor slots, Tensor sizes)",
)


@torch.library.impl("moe_kernels::dispatch", ("cpu", "cuda"))
def dispatch(
    exchange: int, control: Tensor, x: Tensor, expert_ids: Tensor, capacity: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the whole slab [C, D]; slots [T, K]; sizes [L+2]: where each local expert's rows begin, where the last
    one's end, and the edges of all ranks that had no room."""
    shared = exchange_of(exchange)
    shared.check_inputs(x, expert_ids)
    if x.shape[0] != expert_ids.shape[0]:
        raise KernelError(f"{x.shape[0]} rows but expert ids of {expert_ids.shape[0]} tokens")
    if x.device.type == "cpu":
        shared.check_expert_ids(expert_ids)
    x = x.contiguous()
    rows = shared.pool.empty(capacity, x.shape[1], x.dtype)
    slots = torch.empty_like(expert_ids)
    sizes = expert_ids.new_empty(shared.num_local + 2)
    shared.issue(
        DISPATCH,
        shared.rows_of(x, expert_ids),
        expert_ids.data_ptr(),
        shared.slab_of(rows),
        capacity,
        slots.data_ptr(),
        sizes.data_ptr(),
        sizes.data_ptr() + (shared.num_local + 1) * sizes.itemsize,
        shared.workspace(expert_ids.numel()),
    )
    return rows, slots, sizes


@torch.library.register_fake("moe_kernels::dispatch")
def _(
    exchange: int, control: Tensor, x: Tensor, expert_ids: Tensor, capacity: int
) -> tuple[Tensor, Tensor, Tensor]:
    shared = exchange_of(exchange)
    return (
        x.new_empty(capacity, x.shape[1]),
        torch.empty_like(expert_ids, memory_format=torch.contiguous_format),
        expert_ids.new_empty(shared.num_local + 2),
    )
