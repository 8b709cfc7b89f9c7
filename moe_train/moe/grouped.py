"""Runs the experts of one layer on a GPU: one product of all experts per matrix, instead of one per expert.

The same numbers as `GroupedFeedForward` in experts.py, its twin: torch's grouped product takes the rows of all experts
and where each run ends. With many experts of few rows it is several times as fast (docs/gpu.md). It is for bfloat16.
R rows received, E experts held here, D model width, F hidden width.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import grouped_mm

from moe_train.config.spec import GATED
from moe_train.moe.activations import activate_, activated, activation_gradient
from moe_train.moe.gradient_buffers import GradientBuffers

LEAST_CAPABILITY = (9, 0)
"""Of a GPU with a kernel for it; elsewhere torch calls one product an expert, too."""
BYTES_OF_A_STRIDE = 16
"""Rows of all matrices must be multiples of it."""


def has_grouped_products(rows: Float[Tensor, "R D"], weights: Float[Tensor, "E D F"]) -> bool:
    """Returns whether these rows can go through all experts at once, and that is the fast way."""
    return (
        rows.is_cuda
        and len(rows) > 0
        and rows.dtype == torch.bfloat16
        and torch.cuda.get_device_capability(rows.device) >= LEAST_CAPABILITY
        and all(width * rows.element_size() % BYTES_OF_A_STRIDE == 0 for width in weights.shape[1:])
    )


class FeedForwardAtOnce(torch.autograd.Function):
    """Applies each expert's feed-forward to its run of rows; backward writes weight gradients in place."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Float[Tensor, "R D"],
        counts: list[int],
        activation: str,
        buffers: GradientBuffers | None,
        scale: float,
        empty_like: Callable[[Tensor], Tensor],
        dropout: Float[Tensor, "R F"] | None,
        *weights: Float[Tensor, "E _ _"],
    ) -> Float[Tensor, "R D"]:
        ends = run_ends(counts, rows.device)
        w_in, w_out, *w_gate = (weight.to(rows.dtype) for weight in (weights[0], weights[-1], *weights[1:-1]))
        hidden = grouped_mm(rows, w_in, offs=ends)
        gate = [grouped_mm(rows, weight, offs=ends) for weight in w_gate]
        active = activate_(activation, hidden, gate[0] if gate else None)
        out = into(empty_like, rows, grouped_mm(_dropped(active, dropout), w_out, offs=ends))
        ctx.save_for_backward(rows, ends, dropout, hidden, *gate, *weights)
        ctx.activation, ctx.buffers, ctx.scale, ctx.empty_like = activation, buffers, scale, empty_like
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Float[Tensor, "R D"]) -> tuple[Tensor | None, ...]:
        rows, ends, dropout, hidden, *saved = ctx.saved_tensors
        gate, weights = (saved[0], saved[1:]) if ctx.activation in GATED else (None, saved)
        buffers: GradientBuffers | None = ctx.buffers
        grads = buffers.tensors if buffers else [torch.empty_like(weight) for weight in weights]
        add = buffers is not None and not buffers.is_fresh

        def backwards(grad: Tensor, weight: Tensor) -> Tensor:
            return grouped_mm(grad, weight.to(grad.dtype).transpose(1, 2), offs=ends)

        def learn(index: int, left: Tensor, right: Tensor) -> None:
            gradient = grouped_mm(left.t(), right, offs=ends)
            if add:
                grads[index].add_(gradient, alpha=ctx.scale)
            else:
                torch.mul(gradient, ctx.scale, out=grads[index])

        grad_out = grad_out.contiguous()
        active = _dropped(activated(ctx.activation, hidden, gate), dropout)
        grad_active = _dropped(backwards(grad_out, weights[-1]), dropout)
        learn(-1, active, grad_out)
        grad_hidden, grad_gate = activation_gradient(ctx.activation, grad_active, hidden, gate)
        learn(0, rows, grad_hidden)
        grad_rows = backwards(grad_hidden, weights[0])
        if grad_gate is not None:
            learn(1, rows, grad_gate)
            grad_rows += backwards(grad_gate, weights[1])
        if buffers:
            buffers.is_fresh = False
        of_weights = [None] * len(grads) if buffers else grads
        return (into(ctx.empty_like, rows, grad_rows), None, None, None, None, None, None, *of_weights)


def run_ends(counts: Sequence[int], device: torch.device) -> Int[Tensor, " E"]:
    """Returns where each expert's run of rows ends."""
    return torch.tensor(counts, dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device, non_blocking=True)


def into(
    empty_like: Callable[[Tensor], Tensor], rows: Float[Tensor, "R D"], values: Float[Tensor, "R D"]
) -> Float[Tensor, "R D"]:
    """Returns `values` in the memory that `empty_like` gives, unless that may be any memory."""
    return values if empty_like is torch.empty_like else empty_like(rows).copy_(values)


def _dropped(hidden: Float[Tensor, "R F"], factors: Float[Tensor, "R F"] | None) -> Float[Tensor, "R F"]:
    return hidden if factors is None else hidden * factors
