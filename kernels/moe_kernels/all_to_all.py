"""Exchanges rows by an all-to-all with a size for every pair of ranks; its gradient is the reverse exchange.

N rows sent, R rows received, D width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
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
    with _naming_ranks(group):
        dist.all_to_all_single(out, rows.contiguous(), receive, send, group=group)
    return out


class Trip:
    """Is the same exchange in the background: between `start` and `arrive` the worker may do something else.

    In a backward pass the gradients make the way back by `start_back` and `arrive`. One at a time is under way.
    """

    def __init__(self, send: list[int], receive: list[int], group: dist.ProcessGroup):
        self.send, self.receive, self.group = send, receive, group
        self._under_way: tuple[dist.Work, Tensor] | None = None

    def start(self, rows: Tensor) -> None:
        """Sends rows. Collective."""
        self._start(rows, self.send, self.receive)

    def start_back(self, grad: Tensor) -> None:
        """Sends gradients the other way. Collective."""
        self._start(grad, self.receive, self.send)

    def arrive(self) -> Tensor:
        """Returns what all ranks have sent to this one, in rank order. On CUDA only the current stream waits for it.

        Raises PeerTimeoutError if the process group fails.
        """
        assert self._under_way is not None, "nothing is under way"
        (work, out), self._under_way = self._under_way, None  # what was sent is freed with the work
        with _naming_ranks(self.group):
            work.wait()
        return out

    def _start(self, rows: Tensor, send: list[int], receive: list[int]) -> None:
        assert self._under_way is None, "something is under way"
        out = rows.new_empty(sum(receive), *rows.shape[1:])
        with _naming_ranks(self.group):
            work = dist.all_to_all_single(
                out, rows.contiguous(), receive, send, group=self.group, async_op=True
            )
        self._under_way = work, out


@contextmanager
def _naming_ranks(group: dist.ProcessGroup) -> Iterator[None]:
    """Raises PeerTimeoutError for an error of the process group in the block."""
    try:
        yield
    except RuntimeError as error:
        ranks = dist.get_process_group_ranks(group)
        raise PeerTimeoutError(
            f"rank {dist.get_rank()}: the exchange between ranks {ranks} failed: {error}"
        ) from error
