"""Defines moe_kernels::send, which writes weighted rows into the slots of an earlier dispatch. Backward of combine.

T tokens of this rank, K choices, D width, C capacity, R ranks. `control`: see dispatch.py.
"""

import torch
from torch import Tensor

from moe_kernels.library import SEND
from moe_kernels.registry import exchange_of

torch.library.define(
    "moe_kernels::send",
    "(int exchange, Tensor(a!) control, Tensor x, Tensor expert_ids, Tensor slots, Tensor weights, Tensor outputs,"
    " SymInt capacity) -> (Tensor rows, Tensor grad_weights)",
)


@torch.library.impl("moe_kernels::send", ("cpu", "cuda"))
def send(
    exchange: int,
    control: Tensor,
    x: Tensor,
    expert_ids: Tensor,
    slots: Tensor,
    weights: Tensor,
    outputs: Tensor,
    capacity: int,
) -> tuple[Tensor, Tensor]:
    """Returns a slab of `capacity` rows, and a dot product for each edge, [T, K] float32.

    That is the product of the edge's row in `x` with the row in its slot of `outputs`, which are the slabs that a pull
    has read, [R] int64.
    """
    shared = exchange_of(exchange)
    shared.check_inputs(x, expert_ids)
    x, weights = x.contiguous(), weights.contiguous()
    rows = shared.pool.empty(capacity, x.shape[1], x.dtype)
    grad_weights = torch.empty_like(weights)
    shared.issue(
        SEND,
        shared.rows_of(x, expert_ids),
        expert_ids.data_ptr(),
        slots.data_ptr(),
        weights.data_ptr(),
        shared.slab_of(rows),
        outputs.data_ptr(),
        grad_weights.data_ptr(),
    )
    return rows, grad_weights


@torch.library.register_fake("moe_kernels::send")
def _(
    exchange: int,
    control: Tensor,
    x: Tensor,
    expert_ids: Tensor,
    slots: Tensor,
    weights: Tensor,
    outputs: Tensor,
    capacity: int,
) -> tuple[Tensor, Tensor]:
    grad_weights = torch.empty_like(weights, memory_format=torch.contiguous_format)
    return x.new_empty(capacity, x.shape[1]), grad_weights
