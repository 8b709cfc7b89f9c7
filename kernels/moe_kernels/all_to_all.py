"""Exchanges rows by an all-to-all with a size for every pair of ranks; its gradient is the reverse exchange.

N rows sent, R rows received, D width.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from moe_kernels.errors import PeerTimeoutError


class AllToAll(torch.autograd.Function):
    """Maps rows [N, D] -> [R, D]; `send` and `receive` are the numbers of rows to and from each rank of `group`."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, send: list[int], receive: list[int], group: dist.ProcessGroup | None
    ) -> Tensor:
        ctx.send, ctx.receive, ctx.group = send, receive, group
        return all_to_all(rows, send, receive, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return all_to_all(grad, ctx.receive, ctx.send, ctx.group), None, None, None


def all_to_all(rows: Tensor, send: list[int], receive: list[int], group: dist.ProcessGroup | None) -> Tensor:
    """Returns the rows that all ranks send to this one, in rank order; a copy without a group. Collective.

    Raises PeerTimeoutError if the process group fails: a rank is lost or does not arrive in time.
    """
    if group is None:
        return rows.clone()
    out = rows.new_empty(sum(receive), *rows.shape[1:])
    try:
        dist.all_to_all_single(out, rows.contiguous(), receive, send, group=group)
    except RuntimeError as error:
        ranks = dist.get_process_group_ranks(group)
        raise PeerTimeoutError(
            f"rank {dist.get_rank()}: the exchange between ranks {ranks} failed: {error}"
        ) from error
    return out
