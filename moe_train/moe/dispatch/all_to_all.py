"""Implements expert parallelism by collectives: counts first, then one all-to-all of rows each way.

Rank r of W holds experts r*E/W ... (r+1)*E/W - 1. Sorted by expert, the rows of a rank are already sorted by
destination; what arrives is sorted by source and then expert, so one more permutation makes it expert-major.
W ranks in the expert group, E experts in all, N edges of this rank, R rows received, D model width.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from moe_kernels.all_to_all import AllToAll
from moe_train.config.kinds.dispatch import DispatchConfig
from moe_train.moe.dispatch.dispatcher import Dispatched
from moe_train.moe.dispatch.local import ExpertOrder
from moe_train.moe.permute import GatherRows
from moe_train.moe.routing import Routing


@dataclass(frozen=True)
class ExchangePlan:
    """Records how the rows of one dispatch were exchanged."""

    order: ExpertOrder
    send: list[int]
    """Rows to each rank."""
    receive: list[int]
    """Rows from each rank."""
    to_expert_major: Int[Tensor, " R"]
    """Arrived row that stands at each place of the expert-major order."""
    to_arrival: Int[Tensor, " R"]
    """The inverse."""


class AllToAllDispatcher:
    """Sends rows to the rank of their expert and back, over gloo or NCCL."""

    def __init__(
        self,
        config: DispatchConfig,
        *,
        num_experts: int,
        group: dist.ProcessGroup | None,
        timeout_s: float = 0.0,  # the group has its own
    ):
        self.group = group
        self.num_ranks = dist.get_world_size(group) if group is not None else 1
        self.num_local = num_experts // self.num_ranks

    def dispatch(self, x: Float[Tensor, "T D"], routing: Routing) -> Dispatched:
        order = ExpertOrder.of(routing)
        sent = order.counts
        received = torch.empty_like(sent)
        if self.num_ranks > 1:
            dist.all_to_all_single(received, sent, group=self.group)
        else:
            received.copy_(sent)
        send, receive, counts = self._host_sizes(sent, received)
        local_expert = torch.arange(received.numel(), device=x.device) % self.num_local
        to_expert_major = torch.argsort(
            local_expert.repeat_interleave(received, output_size=sum(counts)), stable=True
        )
        to_arrival = torch.empty_like(to_expert_major)
        to_arrival[to_expert_major] = torch.arange(to_arrival.numel(), device=x.device)
        plan = ExchangePlan(order, send, receive, to_expert_major, to_arrival)
        arrived = AllToAll.apply(order.gather(x), send, receive, self.group)
        return Dispatched(_reorder(arrived, to_expert_major, to_arrival), counts, plan)

    def _host_sizes(
        self, sent: Int[Tensor, " E"], received: Int[Tensor, " E"]
    ) -> tuple[list[int], list[int], list[int]]:
        """Returns the rows to each rank, from each rank, and for each local expert.

        The one host synchronisation of a dispatch: split sizes must be known to the collective.
        """
        shape = (self.num_ranks, self.num_local)
        by_source = received.view(shape)
        send, receive, counts = sent.view(shape).sum(1), by_source.sum(1), by_source.sum(0)
        return send.tolist(), receive.tolist(), counts.tolist()

    def combine(self, rows: Float[Tensor, "R D"], dispatched: Dispatched) -> Float[Tensor, "T D"]:
        plan: ExchangePlan = dispatched.plan
        back = _reorder(rows, plan.to_arrival, plan.to_expert_major)
        return plan.order.combine(AllToAll.apply(back, plan.receive, plan.send, self.group))


def _reorder(rows: Tensor, order: Int[Tensor, " R"], inverse: Int[Tensor, " R"]) -> Tensor:
    """Computes rows[order], whose gradient is a gather too."""
    return GatherRows.apply(rows, order, inverse.unsqueeze(1), None)
