"""Applies experts' activations and their gradients by hand, to rows of any expert.

R rows, F hidden width.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def _gelu(x: Float[Tensor, "... F"]) -> Float[Tensor, "... F"]:
    """Computes GELU without oneDNN, which compiles and keeps a program for every number of rows.

    Experts get new numbers of rows in every step. oneDNN takes only contiguous tensors, so a transposed view avoids it.
    """
    return torch.nn.functional.gelu(x.mT).mT


def _gelu_gradient_(grad: Float[Tensor, "R F"], x: Float[Tensor, "R F"]) -> Float[Tensor, "R F"]:
    """Computes the gradient of `_gelu` in place of `grad`, and like it without oneDNN."""
    torch.ops.aten.gelu_backward.grad_input(grad.mT, x.mT, grad_input=grad.mT)
    return grad


GATES: dict[str, Callable[..., Tensor]] = {"swiglu": torch.nn.functional.silu, "geglu": _gelu}


def activate_(activation: str, hidden: Tensor, gate: Tensor | None) -> Tensor:
    """Returns the activated hidden rows. relu overwrites them: its output is all that its gradient needs."""
    return hidden.relu_() if activation == "relu" else activated(activation, hidden, gate)


def activated(activation: str, hidden: Tensor, gate: Tensor | None) -> Tensor:
    """Returns the activated rows from what `activate_` left in `hidden`."""
    if activation == "relu":
        return hidden
    if activation == "gelu":
        return _gelu(hidden)
    assert gate is not None
    return GATES[activation](gate).mul_(hidden)


def activation_gradient(
    activation: str, grad: Tensor, hidden: Tensor, gate: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Returns the gradients with respect to hidden and gate; relu and gelu overwrite `grad`."""
    if activation == "relu":
        return torch.ops.aten.threshold_backward.grad_input(grad, hidden, 0, grad_input=grad), None
    if activation == "gelu":
        return _gelu_gradient_(grad, hidden), None
    assert gate is not None
    backward = torch.ops.aten.silu_backward if activation == "swiglu" else _gelu_gradient_
    return grad * GATES[activation](gate), backward(grad * hidden, gate)
