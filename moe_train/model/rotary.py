"""Rotates queries and keys by their positions.

By a function of its own: autograd would fill two tensors with zeros for the gradients of the halves and add them up,
and join the halves in a further pass. The numbers are those of `plainly_rotated`, bit for bit.
B sequences, H heads, S tokens, W width of a head.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable


def rotate(x: Float[Tensor, "B H S W"], base: float = 10_000.0) -> Float[Tensor, "B H S W"]:
    """Rotates the pair (i, i + W/2) by position * base^(-2i/W)   # RoFormer (2104.09864) eq. 34, halves paired."""
    half = x.shape[-1] // 2
    rate = base ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angle = torch.outer(torch.arange(x.shape[-2], device=x.device, dtype=torch.float32), rate)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    if torch.compiler.is_compiling():
        return plainly_rotated(x, cos, sin)  # which a compiler fuses
    rotated: Tensor = Rotation.apply(x, cos, sin)
    return rotated


def plainly_rotated(
    x: Float[Tensor, "B H S W"], cos: Float[Tensor, "S half"], sin: Float[Tensor, "S half"]
) -> Float[Tensor, "B H S W"]:
    """Rotates the halves of `x` by angles with these cosines and sines: the formula that `Rotation` computes."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Rotation(torch.autograd.Function):
    """Computes `plainly_rotated`; its gradient is rotated back."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "B H S W"],
        cos: Float[Tensor, "S half"],
        sin: Float[Tensor, "S half"],
    ) -> Float[Tensor, "B H S W"]:
        ctx.save_for_backward(cos, sin)
        return _write_rotated(x.new_empty(x.shape), x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Float[Tensor, "B H S W"]) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        # In the order in memory of attention's gradient, which is that of the projection's rows.
        return _write_rotated(torch.empty_like(grad), grad, cos, -sin), None, None


def _write_rotated(out: Tensor, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    to_first, to_second = out.chunk(2, dim=-1)
    torch.mul(first, cos, out=to_first).sub_(second * sin)
    torch.mul(second, cos, out=to_second).add_(first * sin)
    return out
