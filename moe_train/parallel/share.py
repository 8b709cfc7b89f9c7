"""Cuts rows that every worker of an axis holds into one share for each worker, and puts the shares together again.

The pair encloses work that the workers divide among them, where all else is computed alike on each of them:

    split     forward: my rows        backward: all-gather
    gather    forward: all-gather     backward: my rows

Both gradients are whole on every worker, and nothing is summed: the loss is one and the same, so every worker has the
whole gradient of what it holds whole, and only the worker of a share has that of its rows.
Shares are runs of ceil(T / A) rows; where A does not divide T the last ones are shorter, or empty.
T rows in all, S of this worker's share, A workers of the axis.
"""

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable

from moe_train.parallel.axis import Axis


def split(rows: Shaped[Tensor, "T ..."], axis: Axis) -> Shaped[Tensor, "S ..."]:
    """Returns this worker's share of `rows`, which are the same on all workers. Its gradient is collective."""
    whole: Tensor = _Split.apply(rows, axis) if axis.size > 1 else rows
    return whole


def gather(share: Shaped[Tensor, "S ..."], axis: Axis, num_rows: int) -> Shaped[Tensor, "T ..."]:
    """Returns all `num_rows` rows from the workers' shares, in order. Collective."""
    rows: Tensor = _Gather.apply(share, axis, num_rows) if axis.size > 1 else share
    return rows


def bounds(num_rows: int, axis: Axis) -> tuple[int, int]:
    """Returns the first row of this worker's share, and the one after its last."""
    size = -(-num_rows // axis.size)
    return min(axis.rank * size, num_rows), min((axis.rank + 1) * size, num_rows)


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, axis: Axis) -> Tensor:
        ctx.axis, ctx.num_rows = axis, len(rows)
        return _mine(rows, axis)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _all(grad, ctx.axis, ctx.num_rows), None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, share: Tensor, axis: Axis, num_rows: int) -> Tensor:
        ctx.axis = axis
        return _all(share, axis, num_rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _mine(grad, ctx.axis), None, None


def _mine(rows: Shaped[Tensor, "T ..."], axis: Axis) -> Shaped[Tensor, "S ..."]:
    first, last = bounds(len(rows), axis)
    return rows[first:last]


def _all(share: Shaped[Tensor, "S ..."], axis: Axis, num_rows: int) -> Shaped[Tensor, "T ..."]:
    """Gathers shares of equal size, the last ones filled up. Collective."""
    size = -(-num_rows // axis.size)
    if len(share) < size:
        share = torch.cat((share, share.new_zeros(size - len(share), *share.shape[1:])))
    rows = share.new_empty(size * axis.size, *share.shape[1:])
    if rows.numel():
        dist.all_gather_single(rows, share.contiguous(), group=axis.group)
    return rows[:num_rows]
