"""Implements the experts of one layer: stacked weights, one matrix product per expert and matrix, gradients in place.

On GPUs that have products of all experts at once, those are taken instead (grouped.py).

At 64 experts the cost beyond the products themselves is not moving rows but allocating weight gradients, so
where nobody else owns them they live in persistent buffers that the products write into (`GradientBuffers`).
FSDP2, where it shards the experts, wants ordinary gradients and gets them. What the forward pass keeps is one
tensor an expert: the allocator reuses blocks of a moderate size, but maps one of hundreds of MiB afresh.
R rows received, E experts held here, D model width, F hidden width.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from moe_train.config.spec import GATED
from moe_train.initial import Constant, Initial, Normal
from moe_train.moe.activations import activate_, activated, activation_gradient
from moe_train.moe.gradient_buffers import GradientBuffers
from moe_train.moe.grouped import FeedForwardAtOnce, has_grouped_products

HIDDEN_DIM = {"w_in": 2, "w_gate": 2, "w_out": 1}
"""Dimension of each stacked weight along which it is cut into slices of the experts' hidden width."""


class ExpertWeights(nn.Module):
    """Holds E feed-forward networks without biases: relu or gelu, or swiglu or geglu with a third matrix `w_gate`.

    What is done with them is the business of subclasses, and so are their gradients.
    """

    def __init__(self, num_experts: int, d_model: int, d_ff: int, activation: str):
        super().__init__()
        self.activation = activation
        self.w_in = nn.Parameter(torch.empty(num_experts, d_model, d_ff))
        self.w_gate = nn.Parameter(torch.empty(num_experts, d_model, d_ff)) if activation in GATED else None
        self.w_out = nn.Parameter(torch.empty(num_experts, d_ff, d_model))
        self.buffers_for_gradients: GradientBuffers | None = None
        self.gradient_scale = 1.0
        """Factor of the weights' gradients; distribute/expert.py has that of the layout in it."""
        self.begins_at_zero = False
        """`w_out` begins at 0, so that the experts add nothing at first."""

    @property
    def names(self) -> list[str]:
        """Returns the names of the weights, in the order of parameters and of functions of them."""
        return [name for name, _ in self.named_parameters()]

    def initial(self, name: str) -> Initial:
        """Returns how each expert's matrix begins: by itself, on any rank."""
        if name == "w_out" and self.begins_at_zero:
            return Constant(0.0)
        return Normal(fan_in=getattr(self, name).shape[1], is_stacked=True)

    def keep_gradients(self) -> GradientBuffers:
        """Writes weight gradients into persistent buffers from now on, and returns them."""
        self.buffers_for_gradients = GradientBuffers(list(self.parameters()))
        return self.buffers_for_gradients

    def for_function(self) -> list[Float[Tensor, "E _ _"]]:
        """Returns the weights for a function whose backward pass writes their gradients into the buffers, if any."""
        weights = [weight for weight in (self.w_in, self.w_gate, self.w_out) if weight is not None]
        return [weight.detach() if self.buffers_for_gradients else weight for weight in weights]


class Experts(ExpertWeights):
    """Applies each network to its own rows."""

    def forward(
        self,
        rows: Float[Tensor, "R D"],
        counts: list[int],
        empty_like: Callable[[Tensor], Tensor] = torch.empty_like,
        dropout: Float[Tensor, "R F"] | None = None,
    ) -> Float[Tensor, "R D"]:
        """Applies expert e to the e-th run of rows; `counts` gives the length of each run.

        `empty_like` makes the memory for the results and for the gradient of `rows`; `dropout`, where there is any,
        holds factors of the activated hidden units.
        """
        buffers = self.buffers_for_gradients
        if buffers and not rows.requires_grad and torch.is_grad_enabled():
            rows = rows.detach().requires_grad_()  # so that backward runs for the weights alone
        function = FeedForwardAtOnce if has_grouped_products(rows, self.w_in) else GroupedFeedForward
        return function.apply(
            rows,
            counts,
            self.activation,
            buffers,
            self.gradient_scale,
            empty_like,
            dropout,
            *self.for_function(),
        )

    def in_two(
        self,
        first: Float[Tensor, "R1 D"],
        second: Float[Tensor, " 0"],
        counts: Sequence[list[int]],
        dropout: Sequence[Float[Tensor, "_ F"] | None],
        between: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    ) -> tuple[Float[Tensor, " 0"], Float[Tensor, "R2 D"]]:
        """Applies the networks to the first rows and then to the second, which are under way until then.

        `between` gets the results of the first, and starts their way back; it returns the second rows by expert. What
        is under way is an empty tensor (dispatch/turns.py). As both are one call, FSDP2 gathers the weights once, and
        reduces their gradients once.
        """
        results = self.forward(first, counts[0], dropout=dropout[0])
        returning, second = between(results, second)
        return returning, self.forward(second, counts[1], dropout=dropout[1])


class GroupedFeedForward(torch.autograd.Function):
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
        w_in, w_out, *w_gate = (weight.unbind(0) for weight in (weights[0], weights[-1], *weights[1:-1]))
        hidden, gates, out = [], [], empty_like(rows)
        factors = () if dropout is None else dropout.split(counts)
        for expert, (x, y) in enumerate(zip(rows.split(counts), out.split(counts), strict=True)):
            hidden.append(torch.mm(x, w_in[expert].to(x.dtype)))
            for weight in w_gate:
                gates.append(torch.mm(x, weight[expert].to(x.dtype)))
            active = activate_(activation, hidden[-1], gates[-1] if gates else None)
            active = active if dropout is None else active * factors[expert]
            torch.mm(active, w_out[expert].to(x.dtype), out=y)
        ctx.save_for_backward(rows, dropout, *weights, *hidden, *gates)
        ctx.counts, ctx.activation, ctx.buffers, ctx.scale = counts, activation, buffers, scale
        ctx.empty_like = empty_like
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Float[Tensor, "R D"]) -> tuple[Tensor | None, ...]:
        gated, num_experts = ctx.activation in GATED, len(ctx.counts)
        rows, dropout, *saved = ctx.saved_tensors
        num_weights = 3 if gated else 2
        weights, hidden, gates = saved[:num_weights], saved[num_weights:], saved[num_weights + num_experts :]
        buffers: GradientBuffers | None = ctx.buffers
        grads = buffers.tensors if buffers else [torch.empty_like(weight) for weight in weights]
        add = buffers is not None and not buffers.is_fresh
        transposed = [weight.transpose(1, 2).unbind(0) for weight in weights]
        slices = [grad.unbind(0) for grad in grads]
        factors = () if dropout is None else dropout.split(ctx.counts)
        grad_rows = ctx.empty_like(rows)
        runs = zip(*(tensor.split(ctx.counts) for tensor in (rows, grad_out, grad_rows)), strict=True)
        for expert, (x, g, grad_x) in enumerate(runs):
            gate = gates[expert] if gated else None
            active = activated(ctx.activation, hidden[expert], gate)
            grad_active = torch.mm(g, transposed[-1][expert].to(g.dtype))
            if factors:
                active = active * factors[expert]
                grad_active.mul_(factors[expert])
            weight_gradient(slices[-1][expert], active, g, add, ctx.scale)
            grad_hidden, grad_gate = activation_gradient(ctx.activation, grad_active, hidden[expert], gate)
            weight_gradient(slices[0][expert], x, grad_hidden, add, ctx.scale)
            torch.mm(grad_hidden, transposed[0][expert].to(g.dtype), out=grad_x)
            if grad_gate is not None:
                weight_gradient(slices[1][expert], x, grad_gate, add, ctx.scale)
                grad_x.addmm_(grad_gate, transposed[1][expert].to(g.dtype))
        if buffers:
            buffers.is_fresh = False
        return (grad_rows, None, None, None, None, None, None, *([None] * len(grads) if buffers else grads))


def weight_gradient(out: Tensor, left: Tensor, right: Tensor, add: bool, scale: float) -> None:
    """Computes out (+)= scale * left^T right, in the products' own precision; without rows, out = 0 or stays."""
    if out.dtype == left.dtype:
        torch.addmm(out, left.t(), right, beta=1 if add else 0, alpha=scale, out=out)
    elif add:
        out.add_(torch.mm(left.t(), right), alpha=scale)
    else:
        torch.mul(torch.mm(left.t(), right), scale, out=out)
