"""Implements expert parallelism by collectives: counts first, then one all-to-all of rows each way.

Rank r of W holds experts r*E/W ... (r+1)*E/W - 1. Sorted by expert, the rows of a rank are already sorted by
destination; what arrives is sorted by source and then expert, so one more permutation makes it expert-major.
W ranks in the expert group, E experts in all, L of them here, N edges of this rank, R rows received, D model width,
P parts of the tokens, which is 1 but in overlap.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from moe_kernels.all_to_all import AllToAll, Trip
from moe_train.config.kinds.dispatch import DispatchConfig
from moe_train.moe.dispatch.dispatcher import Dispatched
from moe_train.moe.dispatch.local import ExpertOrder
from moe_train.moe.permute import GatherRows
from moe_train.moe.routing import Routing


@dataclass(frozen=True)
class ExchangePlan:
    """Records how the rows of one dispatch are exchanged."""

    order: ExpertOrder
    send: list[int]
    """Rows to each rank."""
    receive: list[int]
    """Rows from each rank."""
    counts: list[int]
    """Rows of each local expert."""
    to_expert_major: Int[Tensor, " R"]
    """Arrived row that stands at each place of the expert-major order."""
    to_arrival: Int[Tensor, " R"]
    """The inverse."""

    def by_expert(self, arrived: Float[Tensor, "R D"]) -> Float[Tensor, "R D"]:
        """Orders arrived rows by expert."""
        return _reorder(arrived, self.to_expert_major, self.to_arrival)

    def by_source(self, rows: Float[Tensor, "R D"]) -> Float[Tensor, "R D"]:
        """Orders results as their rows arrived, for the way back."""
        return _reorder(rows, self.to_arrival, self.to_expert_major)


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
        (plan,) = self.plan([routing])
        return Dispatched(self.send(x, plan), plan.counts, plan)

    def combine(self, rows: Float[Tensor, "R D"], dispatched: Dispatched) -> Float[Tensor, "T D"]:
        plan: ExchangePlan = dispatched.plan
        back = AllToAll.apply(plan.by_source(rows), plan.receive, plan.send, self.group)
        return plan.order.combine(back)

    def plan(self, parts: Sequence[Routing]) -> list[ExchangePlan]:
        """Plans the exchange of each part. Collective: one exchange of the numbers of rows of all parts."""
        orders = [ExpertOrder.of(part) for part in parts]
        sent = torch.stack([order.counts for order in orders]).unflatten(1, (self.num_ranks, self.num_local))
        received = self._from_all(sent)
        sizes = self._host_sizes(parts, sent, received)
        return [_planned(*each) for each in zip(orders, received, *sizes, strict=True)]

    def send(self, x: Float[Tensor, "T D"], plan: ExchangePlan) -> Float[Tensor, "R D"]:
        """Returns the rows that arrive here, by expert. Collective."""
        arrived = AllToAll.apply(plan.order.gather(x), plan.send, plan.receive, self.group)
        return plan.by_expert(arrived)

    def there(self, plan: ExchangePlan) -> Trip:
        """Returns the way of rows to their experts."""
        assert self.group is not None
        return Trip(plan.send, plan.receive, self.group)

    def back(self, plan: ExchangePlan) -> Trip:
        """Returns the way of results to their tokens."""
        assert self.group is not None
        return Trip(plan.receive, plan.send, self.group)

    def _from_all(self, sent: Int[Tensor, "P W L"]) -> Int[Tensor, "P W L"]:
        """Returns the rows of each part from each rank to each expert here, given those to all ranks. Collective."""
        if self.num_ranks == 1:
            return sent.clone()
        by_rank = sent.transpose(0, 1).contiguous()
        received = torch.empty_like(by_rank)
        dist.all_to_all_single(received, by_rank, group=self.group)
        return received.transpose(0, 1)

    def _host_sizes(
        self, parts: Sequence[Routing], sent: Int[Tensor, "P W L"], received: Int[Tensor, "P W L"]
    ) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
        """Returns, of each part, the rows to each rank, from each rank, and for each expert here.

        The one host synchronisation of a plan: split sizes must be known to the collective.
        """
        send, receive, counts = sent.sum(2), received.sum(2), received.sum(1)
        return send.tolist(), receive.tolist(), counts.tolist()


def _planned(
    order: ExpertOrder, received: Int[Tensor, "W L"], send: list[int], receive: list[int], counts: list[int]
) -> ExchangePlan:
    """Finds the order of arrived rows by expert: they arrive by source, and from each by expert."""
    local_expert = torch.arange(len(counts), device=received.device).repeat(len(received))
    to_expert_major = torch.argsort(
        local_expert.repeat_interleave(received.flatten(), output_size=sum(counts)), stable=True
    )
    to_arrival = torch.empty_like(to_expert_major)
    to_arrival[to_expert_major] = torch.arange(to_arrival.numel(), device=received.device)
    return ExchangePlan(order, send, receive, counts, to_expert_major, to_arrival)


def _reorder(rows: Tensor, order: Int[Tensor, " R"], inverse: Int[Tensor, " R"]) -> Tensor:
    """Computes rows[order], whose gradient is a gather too."""
    return GatherRows.apply(rows, order, inverse.unsqueeze(1), None)
