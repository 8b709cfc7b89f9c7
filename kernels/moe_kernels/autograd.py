"""Defines the gradients of dispatch and combine: each is the other's kernel, with the slots of the forward pass.

    dispatch  rows = dispatch(x)          grad_x = pull(grad_rows)
    combine   y = pull(rows, weights)     grad_rows, grad_weights = send(grad_y, weights)

The operators change shared memory in an order that all ranks keep, which `register_autograd` refuses; so the functions
are written here. T tokens of this rank, K choices, D width, R rows received, C capacity.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from moe_kernels.endpoint import Endpoint
from moe_kernels.ops import dispatch, pull, send  # noqa: F401  defines the operators

_ops = torch.ops.moe_kernels


class DispatchRows(torch.autograd.Function):
    """Maps x [T, D], expert_ids [T, K] -> rows, slots [T, K], sizes [L+2].

    `rows` are the whole slab [C, D] or, if the host needs the sizes, its R rows, with the sizes also as a list. That
    is the only wait for the device."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, expert_ids: Tensor, exchange: Endpoint, capacity: int, is_measured: bool
    ) -> tuple[Tensor, Tensor, Tensor, list[int]]:
        rows, slots, sizes = _ops.dispatch(exchange.number, exchange.control, x, expert_ids, capacity)
        known = []
        if is_measured:
            known = sizes.tolist()
            exchange.check()  # after a failure they are anything
            rows = rows.narrow(0, 0, known[-2])
        ctx.exchange, ctx.like = exchange, (*rows.shape, x.dtype)
        ctx.save_for_backward(expert_ids, slots)
        ctx.mark_non_differentiable(slots, sizes)
        ctx.set_materialize_grads(False)
        return rows, slots, sizes, known

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_rows: Tensor | None, *_: None) -> tuple[Tensor, None, None, None, None]:
        expert_ids, slots = ctx.saved_tensors
        exchange: Endpoint = ctx.exchange
        if grad_rows is None:  # the peers pull all the same
            num_rows, width, dtype = ctx.like
            grad_rows = exchange.pool.empty(num_rows, width, dtype).zero_()
        grad_x, _peers = _ops.pull(exchange.number, exchange.control, grad_rows, expert_ids, slots, None)
        return grad_x, None, None, None, None


class CombineRows(torch.autograd.Function):
    """Maps rows [R, D], weights [T, K] -> y [T, D]."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weights: Tensor, expert_ids: Tensor, slots: Tensor, exchange: Endpoint
    ) -> Tensor:
        rows = exchange.in_slab(rows)  # here already: backward needs this very slab
        y, peers = _ops.pull(exchange.number, exchange.control, rows, expert_ids, slots, weights)
        ctx.exchange = exchange
        ctx.save_for_backward(rows, weights, expert_ids, slots, peers)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        rows, weights, expert_ids, slots, peers = ctx.saved_tensors
        exchange: Endpoint = ctx.exchange
        grad_rows, grad_weights = _ops.send(
            exchange.number, exchange.control, grad_y, expert_ids, slots, weights, peers, rows.shape[0]
        )
        return grad_rows, grad_weights, None, None, None
