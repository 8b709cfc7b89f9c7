"""Moves rows between token order and expert order, with hand-written gradients.

Both ways are gathers: each row is read once and written once, in one pass that also weighs and sums, and sums
run in a fixed order (no atomics, no `index_add`), so forward and backward are reproducible bit by bit.
An edge's weight is never rounded to the precision of the rows: rows are weighed and summed in the weight's own (fp32),
and rounded once, as the kernels of `moe_kernels` do. So all dispatchers give the same numbers in bf16.
T tokens, K choices per token at most, N edges, D model width. An edge's *slot* is token * K + choice; its
*place* is the row it has in expert order.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable


class GatherRows(torch.autograd.Function):
    """Computes rows[n] = x[token_ids[n]]; backward sums a token's rows over its choices."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "T D"],
        token_ids: Int[Tensor, " N"],
        places: Int[Tensor, "T K"],
        present: Float[Tensor, "T K"] | None,
    ) -> Float[Tensor, "N D"]:
        ctx.save_for_backward(places, present)
        return x.index_select(0, token_ids)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_rows: Float[Tensor, "N D"]) -> tuple[Tensor, None, None, None]:
        places, present = ctx.saved_tensors
        return sum_places(grad_rows, places, present), None, None, None


class CombineRows(torch.autograd.Function):
    """Computes y[t] = sum over a token's choices of weight * row; `slots` are those of the rows.

    Sums, and the gradient of the weights, are in the precision of the weights.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: Float[Tensor, "N D"],
        weights: Float[Tensor, "T K"],
        token_ids: Int[Tensor, " N"],
        places: Int[Tensor, "T K"],
        slots: Int[Tensor, " N"],
    ) -> Float[Tensor, "T D"]:
        ctx.save_for_backward(rows, weights, token_ids, slots)
        return sum_places(rows.to(weights.dtype), places, weights).to(rows.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Float[Tensor, "T D"]) -> tuple[Tensor, Tensor, None, None, None]:
        rows, weights, token_ids, slots = ctx.saved_tensors
        grad = grad_y.index_select(0, token_ids)
        of_rows = torch.linalg.vecdot(grad.to(weights.dtype), rows.to(weights.dtype))
        grad_weights = torch.zeros_like(weights).view(-1).index_copy_(0, slots, of_rows).view_as(weights)
        factors = weights.view(-1).index_select(0, slots)
        return grad.mul_(factors.unsqueeze(1)), grad_weights, None, None, None


def sum_places(
    rows: Float[Tensor, "N D"], places: Int[Tensor, "T K"], weights: Float[Tensor, "T K"] | None
) -> Float[Tensor, "T D"]:
    """Sums each token's weighted rows, first choice first; a missing edge has weight 0.

    `embedding_bag` is the one operation that gathers, weighs and sums in a single pass over the rows.
    """
    if rows.shape[0] == 0:
        return rows.new_zeros(places.shape[0], rows.shape[1])
    factors = None if weights is None else weights.to(rows.dtype)
    return F.embedding_bag(places, rows, mode="sum", per_sample_weights=factors)
