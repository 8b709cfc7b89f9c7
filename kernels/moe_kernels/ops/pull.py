"""Defines moe_kernels::pull, which sums weight * row over each token's choices, read from the peers' slabs.

With weights it is combine, without it is the backward of dispatch. T tokens of this rank, K choices, D width, N rows
here, R ranks. `control`: see dispatch.py.
"""

import torch
from torch import Tensor

from moe_kernels.library import COMBINE, PULL
from moe_kernels.registry import exchange_of

torch.library.define(
    "moe_kernels::pull",
    "(int exchange, Tensor(a!) control, Tensor rows, Tensor expert_ids, Tensor slots, Tensor? weights)"
    " -> (Tensor out, Tensor peers)",
)


@torch.library.impl("moe_kernels::pull", ("cpu", "cuda"))
def pull(
    exchange: int,
    control: Tensor,
    rows: Tensor,
    expert_ids: Tensor,
    slots: Tensor,
    weights: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Returns out [T, D], and the slab of each rank, [R] int64, for a later send.

    This rank's slab lasts as long as its `rows`. `rows` [N, D] are copied first if they are not in a slab.
    """
    shared = exchange_of(exchange)
    shared.check_inputs(rows, expert_ids)
    rows = shared.in_slab(rows)
    weights = None if weights is None else weights.contiguous()
    out = rows.new_empty(expert_ids.shape[0], rows.shape[1])
    peers = rows.new_empty(shared.num_ranks, dtype=torch.int64)
    shared.issue(
        PULL if weights is None else COMBINE,
        shared.rows_of(out, expert_ids),
        expert_ids.data_ptr(),
        slots.data_ptr(),
        None if weights is None else weights.data_ptr(),
        shared.slab_of(rows),
        peers.data_ptr(),
        PULL if weights is None else COMBINE,
    )
    return out, peers


@torch.library.register_fake("moe_kernels::pull")
def _(
    exchange: int,
    control: Tensor,
    rows: Tensor,
    expert_ids: Tensor,
    slots: Tensor,
    weights: Tensor | None,
) -> tuple[Tensor, Tensor]:
    shared = exchange_of(exchange)
    peers = rows.new_empty(shared.num_ranks, dtype=torch.int64)
    return rows.new_empty(expert_ids.shape[0], rows.shape[1]), peers
