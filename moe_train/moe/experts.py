"""The experts of one layer: stacked weights, one matrix product per expert and matrix, gradients in place.

At 64 experts the cost beyond the products themselves is not moving rows but allocating weight gradients, so where
nobody else owns them they live in persistent buffers that the products write into (`GradientBuffers`). FSDP2, where
it shards the experts, wants ordinary gradients and gets them.
R rows received, E experts held here, D model width, F hidden width.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class GradientBuffers:
    """Persistent `.grad` tensors of stacked weights, written by the matrix products of the backward pass.

    The first backward pass after `reset` overwrites, later ones add: nothing is ever filled with zeros but the
    slices of experts that saw no row.
    """

    def __init__(self, parameters: list[nn.Parameter]):
        self.tensors = [torch.empty_like(parameter) for parameter in parameters]
        self.is_fresh = True
        for parameter, tensor in zip(parameters, self.tensors, strict=True):
            parameter.grad = tensor

    def reset(self) -> None:
        """What `zero_grad` is for other parameters."""
        self.is_fresh = True


class Experts(nn.Module):
    """E feed-forward networks without biases: relu or gelu, or swiglu with a third matrix `w_gate`."""

    def __init__(self, num_experts: int, d_model: int, d_ff: int, activation: str):
        super().__init__()
        self.activation = activation
        self.w_in = nn.Parameter(torch.empty(num_experts, d_model, d_ff))
        self.w_gate = nn.Parameter(torch.empty(num_experts, d_model, d_ff)) if activation == "swiglu" else None
        self.w_out = nn.Parameter(torch.empty(num_experts, d_ff, d_model))
        self.buffers_for_gradients: GradientBuffers | None = None
        self.gradient_scale = 1.0
        """Factor of the weights' gradients; expert parallelism sets 1 / expert degree (distribute/expert.py)."""

    def keep_gradients(self) -> GradientBuffers:
        """From now on write weight gradients into persistent buffers, and return them."""
        self.buffers_for_gradients = GradientBuffers(list(self.parameters()))
        return self.buffers_for_gradients

    def forward(self, rows: Float[Tensor, "R D"], counts: list[int]) -> Float[Tensor, "R D"]:
        """Apply expert e to the e-th run of rows; `counts` gives the length of each run."""
        buffers = self.buffers_for_gradients
        weights = [w.detach() if buffers else w for w in (self.w_in, self.w_gate, self.w_out) if w is not None]
        if buffers and not rows.requires_grad and torch.is_grad_enabled():
            rows = rows.detach().requires_grad_()  # so that backward runs for the weights alone
        return GroupedFeedForward.apply(
            rows, counts, self.activation, buffers, self.gradient_scale, *weights
        )


class GroupedFeedForward(torch.autograd.Function):
    """Feed-forward of each expert on its run of rows; backward writes each expert's weight gradient in place."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Float[Tensor, "R D"],
        counts: list[int],
        activation: str,
        buffers: GradientBuffers | None,
        scale: float,
        *weights: Float[Tensor, "E _ _"],
    ) -> Float[Tensor, "R D"]:
        w_in, w_out, w_gate = weights[0], weights[-1], weights[1] if len(weights) == 3 else None
        hidden = rows.new_empty(rows.shape[0], w_in.shape[2])
        gate = torch.empty_like(hidden) if w_gate is not None else None
        out = torch.empty_like(rows)
        for expert, run in _runs(counts):
            torch.mm(rows[run], w_in[expert].to(rows.dtype), out=hidden[run])
            if gate is not None and w_gate is not None:
                torch.mm(rows[run], w_gate[expert].to(rows.dtype), out=gate[run])
            active = _activate(activation, hidden[run], gate[run] if gate is not None else None)
            torch.mm(active, w_out[expert].to(rows.dtype), out=out[run])
        ctx.save_for_backward(rows, hidden, *([gate] if gate is not None else []), *weights)
        ctx.counts, ctx.activation, ctx.buffers, ctx.scale = counts, activation, buffers, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Float[Tensor, "R D"]) -> tuple[Tensor | None, ...]:
        rows, hidden, *rest = ctx.saved_tensors
        gated = ctx.activation == "swiglu"
        gate, weights = (rest[0], rest[1:]) if gated else (None, rest)
        buffers: GradientBuffers | None = ctx.buffers
        grads = buffers.tensors if buffers else [torch.empty_like(weight) for weight in weights]
        add = bool(buffers) and not buffers.is_fresh
        grad_rows = torch.empty_like(rows)
        for expert, run in _runs(ctx.counts):
            x, g = rows[run], grad_out[run]
            pre, pre_gate = hidden[run], gate[run] if gate is not None else None
            active = _activate(ctx.activation, pre, pre_gate, recompute=True)
            _weight_gradient(grads[-1][expert], active, g, add, ctx.scale)
            grad_active = torch.mm(g, weights[-1][expert].to(g.dtype).t())
            grad_hidden, grad_gate = _activation_gradient(ctx.activation, grad_active, pre, pre_gate)
            _weight_gradient(grads[0][expert], x, grad_hidden, add, ctx.scale)
            torch.mm(grad_hidden, weights[0][expert].to(g.dtype).t(), out=grad_rows[run])
            if grad_gate is not None:
                _weight_gradient(grads[1][expert], x, grad_gate, add, ctx.scale)
                grad_rows[run].addmm_(grad_gate, weights[1][expert].to(g.dtype).t())
        if not add:
            for expert, count in enumerate(ctx.counts):
                if count == 0:
                    for grad in grads:
                        grad[expert].zero_()
        if buffers:
            buffers.is_fresh = False
        return (grad_rows, None, None, None, None, *([None] * len(grads) if buffers else grads))


def _runs(counts: list[int]) -> list[tuple[int, slice]]:
    """(expert, its run of rows) for every expert that has rows."""
    runs, start = [], 0
    for expert, count in enumerate(counts):
        if count:
            runs.append((expert, slice(start, start + count)))
        start += count
    return runs


def _activate(activation: str, hidden: Tensor, gate: Tensor | None, recompute: bool = False) -> Tensor:
    """The activated hidden rows. relu works in place: its output is all its gradient needs."""
    if activation == "relu":
        return hidden if recompute else hidden.relu_()
    if activation == "gelu":
        return torch.nn.functional.gelu(hidden)
    assert gate is not None
    return torch.nn.functional.silu(gate).mul_(hidden)


def _activation_gradient(
    activation: str, grad: Tensor, hidden: Tensor, gate: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Gradients of `_activate` with respect to hidden and gate."""
    if activation == "relu":
        return torch.ops.aten.threshold_backward(grad, hidden, 0), None
    if activation == "gelu":
        return torch.ops.aten.gelu_backward(grad, hidden), None
    assert gate is not None
    return grad * torch.nn.functional.silu(gate), torch.ops.aten.silu_backward(grad * hidden, gate)


def _weight_gradient(out: Tensor, left: Tensor, right: Tensor, add: bool, scale: float) -> None:
    """out (+)= scale * left^T right, in the products' own precision."""
    if out.dtype == left.dtype:
        torch.addmm(out, left.t(), right, beta=1 if add else 0, alpha=scale, out=out)
    elif add:
        out.add_(torch.mm(left.t(), right), alpha=scale)
    else:
        torch.mul(torch.mm(left.t(), right), scale, out=out)
