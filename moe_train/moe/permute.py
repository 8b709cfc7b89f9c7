"""Moving rows between token order and expert order, with hand-written gradients.

Every row is read once and written once each way, and sums run in a fixed order (no atomics, no `index_add`), so
forward and backward are reproducible bit by bit. An edge's *slot* is token * K + choice: the place of its row in a
table of K rows per token. T tokens, K choices per token at most, N edges, D model width.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable


class GatherRows(torch.autograd.Function):
    """rows[n] = x[slots[n] // K]; backward sums a token's rows over its choices."""

    @staticmethod
    def forward(
        ctx: Any, x: Float[Tensor, "T D"], slots: Int[Tensor, " N"], num_choices: int
    ) -> Float[Tensor, "N D"]:
        ctx.save_for_backward(slots)
        ctx.shape, ctx.num_choices = x.shape, num_choices
        return x.index_select(0, slots if num_choices == 1 else slots // num_choices)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_rows: Float[Tensor, "N D"]) -> tuple[Tensor, None, None]:
        (slots,) = ctx.saved_tensors
        return sum_choices(grad_rows, slots, ctx.shape[0], ctx.num_choices), None, None


class CombineRows(torch.autograd.Function):
    """y[t] = sum over a token's edges of weight * row; tokens without edges get 0."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Float[Tensor, "N D"],
        weights: Float[Tensor, " N"],
        slots: Int[Tensor, " N"],
        num_tokens: int,
        num_choices: int,
    ) -> Float[Tensor, "T D"]:
        ctx.save_for_backward(rows, weights, slots)
        ctx.num_choices = num_choices
        return sum_choices(rows * weights.unsqueeze(1).to(rows.dtype), slots, num_tokens, num_choices)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Float[Tensor, "T D"]) -> tuple[Tensor, Tensor, None, None, None]:
        rows, weights, slots = ctx.saved_tensors
        grad = grad_y.index_select(0, slots if ctx.num_choices == 1 else slots // ctx.num_choices)
        grad_weights = torch.linalg.vecdot(grad, rows).to(weights.dtype)
        return grad.mul_(weights.unsqueeze(1).to(grad.dtype)), grad_weights, None, None, None


def sum_choices(
    rows: Float[Tensor, "N D"], slots: Int[Tensor, " N"], num_tokens: int, num_choices: int
) -> Float[Tensor, "T D"]:
    """Put each row in its slot (empty slots are 0) and sum the slots of each token, first choice first."""
    table_rows = num_tokens * num_choices
    make = rows.new_empty if rows.shape[0] == table_rows else rows.new_zeros
    table = make((table_rows, rows.shape[1])).index_copy_(0, slots, rows)
    return table if num_choices == 1 else table.view(num_tokens, num_choices, -1).sum(1)
