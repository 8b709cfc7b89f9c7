"""Computes softmaxes whose last dimension is cut over the workers of an axis, with gradients written by hand.

Every worker has other columns and gets the same result, from which all go on alike. So the gradient of a result
is complete on every worker, and is not summed again. One maximum and one sum for each row travel forward; backward
only `log_softmax` needs a sum.
N rows, W columns of this worker: the others may have more or fewer, and some worker none.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from moe_train.parallel.axis import Axis


def cross_entropies(
    values: Float[Tensor, "N W"], columns: Int[Tensor, " N"], is_counted: Bool[Tensor, " N"], axis: Axis
) -> Float[Tensor, " N"]:
    """Returns -log p of one column of each row, in fp32, and 0 for rows that do not count. Collective.

    `columns` are counted from the first column of this worker; a row's may be another worker's, below 0 or from W on.
    The values, which may be bf16, are all that is kept for the backward pass.
    """
    return _CrossEntropies.apply(values, columns, is_counted, axis)


def log_softmax(values: Float[Tensor, "*N W"], axis: Axis) -> Float[Tensor, "*N W"]:
    """Returns the logarithm of the softmax over all workers' columns. Collective, also backward."""
    return _LogSoftmax.apply(values, axis)


def log_sum_exp(values: Float[Tensor, "*N W"], axis: Axis) -> Float[Tensor, "*N"]:
    """Returns the logarithm of the sum of exponentials over all workers' columns. Collective."""
    return _LogSumExp.apply(values, axis)


def sum_of_parts(parts: Float[Tensor, "*N"], axis: Axis) -> Float[Tensor, "*N"]:
    """Returns the sum of all workers' parts; the gradient of the sum is that of every part. Collective."""
    return _SumOfParts.apply(parts, axis)


def at_columns(values: Float[Tensor, "*N W"], columns: Int[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    """Returns this worker's part of the values at one column of each row: 0 where the column is another worker's."""
    if values.shape[-1] == 0:
        return values.sum(-1)
    place, is_here = _places(columns, values.shape[-1])
    return values.gather(-1, place).squeeze(-1).where(is_here, 0.0)


class _CrossEntropies(torch.autograd.Function):
    """The gradient is softmax - onehot, of this worker's columns."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, columns: Tensor, is_counted: Tensor, axis: Axis) -> Tensor:
        largest = _largest(values, axis)
        shifted = values - largest  # bf16 less fp32 is fp32
        of_column = at_columns(shifted, columns)
        sums = axis.sum(torch.stack((of_column, shifted.exp_().sum(-1))))
        log_sum = sums[1].log()
        ctx.save_for_backward(values, columns, is_counted, largest, log_sum)
        return (log_sum - sums[0]).where(is_counted, 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, columns, is_counted, largest, log_sum = ctx.saved_tensors
        pull = _softmax(values, largest, log_sum.unsqueeze(-1))
        if values.shape[-1]:
            place, is_here = _places(columns, values.shape[-1])
            pull.scatter_add_(-1, place, -is_here.unsqueeze(-1).to(pull.dtype))
        pull.mul_(grad.where(is_counted, 0.0).unsqueeze(-1))
        return pull.to(values.dtype), None, None, None


class _LogSoftmax(torch.autograd.Function):
    """The gradient is g - softmax * sum(g), the sum over all workers' columns."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, axis: Axis) -> Tensor:
        shifted = values - _largest(values, axis)
        log_p = shifted.sub_(axis.sum(shifted.exp().sum(-1, keepdim=True)).log_())
        ctx.save_for_backward(log_p)
        ctx.axis = axis
        return log_p

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (log_p,) = ctx.saved_tensors
        total = ctx.axis.sum(grad.sum(-1, keepdim=True))
        return grad - log_p.exp() * total, None


class _LogSumExp(torch.autograd.Function):
    """The gradient is the softmax, of this worker's columns."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, axis: Axis) -> Tensor:
        largest = _largest(values, axis)
        log_sum = axis.sum((values - largest).exp_().sum(-1, keepdim=True)).log_()
        ctx.save_for_backward(values, largest, log_sum)
        return (largest + log_sum).squeeze(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        values, largest, log_sum = ctx.saved_tensors
        return _softmax(values, largest, log_sum).mul_(grad.unsqueeze(-1)).to(values.dtype), None


class _SumOfParts(torch.autograd.Function):
    """All workers use the sum alike, so its gradient is whole on each of them and belongs to each part."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, axis: Axis) -> Tensor:
        return axis.sum(parts.clone())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def _largest(values: Tensor, axis: Axis) -> Tensor:
    """Returns the largest value of each row over all workers [..., 1], in fp32."""
    if values.shape[-1] == 0:
        nothing = values.new_full((*values.shape[:-1], 1), -torch.inf, dtype=torch.float32)
        return axis.largest(nothing)
    return axis.largest(values.amax(-1, keepdim=True).float())


def _softmax(values: Tensor, largest: Tensor, log_sum: Tensor) -> Tensor:
    """Returns the probabilities of this worker's columns, in fp32."""
    return (values - largest).sub_(log_sum).exp_()


def _places(columns: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Returns indices [..., 1] that are valid here, and whether they are those of `columns` [...]."""
    return columns.clamp(0, width - 1).unsqueeze(-1), (columns >= 0) & (columns < width)
