"""Gathers and sums the rows sent between hosts: one for each (host, token) with an edge, however many edges it has.

T tokens of this rank, K choices, D width, H hosts, N rows that leave this rank, in order of host and then token.
Both ways and both gradients are gathers; sums run in order of host, in fp32, and are rounded once.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Relay:
    """Describes which rows are sent to which host."""

    token_ids: Tensor
    """[N]: the token of each row."""
    expert_ids: Tensor
    """[N, K] int32: its edges to experts of that host, which counts them from 0; -1 elsewhere."""
    bags: Tensor
    """[N]: rows in order of token and then host."""
    starts: Tensor
    """[T]: where the rows of a token begin in `bags`."""
    counts: Tensor
    """[H]: rows to each host."""

    @classmethod
    def of(cls, expert_ids: Tensor, num_hosts: int, experts_per_host: int) -> "Relay":
        """Plans the rows for edges `expert_ids` [T, K] int32, where -1 is no edge."""
        hosts = expert_ids.div(experts_per_host, rounding_mode="floor")  # -1 stays -1
        present = (hosts.unsqueeze(2) == torch.arange(num_hosts, device=hosts.device)).any(1)  # [T, H]
        by_host = present.t()
        host_ids, token_ids = by_host.nonzero().unbind(1)
        is_there = hosts[token_ids] == host_ids.unsqueeze(1)
        rows = by_host.flatten().cumsum(0).view_as(by_host).t() - 1  # [T, H]: of each pair that is present
        per_token = present.sum(1)
        return cls(
            token_ids=token_ids,
            expert_ids=torch.where(is_there, expert_ids[token_ids] % experts_per_host, -1).int(),
            bags=rows[present],
            starts=per_token.cumsum(0) - per_token,
            counts=present.sum(0),
        )

    def gather(self, x: Tensor) -> Tensor:
        """Maps x [T, D] -> [N, D]."""
        return ToHosts.apply(x, self.token_ids, self.bags, self.starts)

    def sum(self, rows: Tensor) -> Tensor:
        """Maps rows [N, D] -> [T, D]; 0 for a token without edges."""
        return FromHosts.apply(rows, self.token_ids, self.bags, self.starts)


class ToHosts(torch.autograd.Function):
    """Computes rows[n] = x[token_ids[n]]; backward sums a token's rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, token_ids: Tensor, bags: Tensor, starts: Tensor) -> Tensor:
        ctx.save_for_backward(bags, starts)
        return x.index_select(0, token_ids)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_rows: Tensor) -> tuple[Tensor, None, None, None]:
        return _sum_bags(grad_rows, *ctx.saved_tensors), None, None, None


class FromHosts(torch.autograd.Function):
    """Computes y[t] = sum of the token's rows; backward gives each of them the gradient of y[t]."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, token_ids: Tensor, bags: Tensor, starts: Tensor) -> Tensor:
        ctx.save_for_backward(token_ids)
        return _sum_bags(rows, bags, starts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None, None, None]:
        (token_ids,) = ctx.saved_tensors
        return grad_y.index_select(0, token_ids), None, None, None


def _sum_bags(rows: Tensor, bags: Tensor, starts: Tensor) -> Tensor:
    """Gathers and sums in one pass over the rows by `embedding_bag`, in fp32 even if they are bf16."""
    if rows.shape[0] == 0:
        return rows.new_zeros(starts.shape[0], rows.shape[1])
    return F.embedding_bag(bags, rows, starts, mode="sum")
