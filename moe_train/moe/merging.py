"""Merges experts by averaging weights: products of parts and stacked weights, with gradients in place as in experts.py.

M merged experts, E experts held here, D model width, F hidden width.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from moe_train.moe.experts import ExpertWeights, weight_gradient
from moe_train.moe.gradient_buffers import GradientBuffers


class MergingExperts(ExpertWeights):
    """Holds E feed-forward networks, of which any number of mixtures can be made."""

    def forward(self, parts: Float[Tensor, "M E"]) -> tuple[Float[Tensor, "M _ _"], ...]:
        """Returns the mixtures' weights, sum_e parts[m, e] * weight[e], in fp32: `w_in`, `w_gate` if gated, `w_out`."""
        return MergeWeights.apply(
            parts, self.buffers_for_gradients, self.gradient_scale, *self.for_function()
        )


class MergeWeights(torch.autograd.Function):
    """Computes weighted sums of stacked weights; backward writes weight gradients in place."""

    @staticmethod
    def forward(
        ctx: Any,
        parts: Float[Tensor, "M E"],
        buffers: GradientBuffers | None,
        scale: float,
        *weights: Float[Tensor, "E _ _"],
    ) -> tuple[Float[Tensor, "M _ _"], ...]:
        ctx.save_for_backward(parts, *weights)
        ctx.buffers, ctx.scale = buffers, scale
        with torch.autocast(parts.device.type, enabled=False):
            return tuple(
                torch.mm(parts, weight.flatten(1)).view(len(parts), *weight.shape[1:]) for weight in weights
            )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Float[Tensor, "M _ _"]) -> tuple[Tensor | None, ...]:
        parts, *weights = ctx.saved_tensors
        buffers: GradientBuffers | None = ctx.buffers
        outs = buffers.tensors if buffers else [torch.empty_like(weight) for weight in weights]
        add = buffers is not None and not buffers.is_fresh
        grad_parts = torch.zeros_like(parts)
        for weight, grad, out in zip(weights, grads, outs, strict=True):
            flat = grad.flatten(1)
            grad_parts.addmm_(flat, weight.flatten(1).t())
            weight_gradient(out.view(len(weight), -1), parts, flat, add, ctx.scale)
        if buffers:
            buffers.is_fresh = False
        return (grad_parts, None, None, *([None] * len(outs) if buffers else outs))
