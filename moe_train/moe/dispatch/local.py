"""Implements the dispatcher for a worker that holds all experts: a permutation, without communication."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from moe_train.config.kinds.dispatch import DispatchConfig
from moe_train.moe.counts import counts_of
from moe_train.moe.dispatch.dispatcher import Dispatched
from moe_train.moe.permute import CombineRows, GatherRows
from moe_train.moe.routing import Routing


@dataclass(frozen=True)
class ExpertOrder:
    """Holds the edges of a routing in expert order (stable: edges to one expert keep the routing's order).

    E experts; T, K, N, slots and places as in moe/permute.py.
    """

    token_ids: Int[Tensor, " N"]
    slots: Int[Tensor, " N"]
    places: Int[Tensor, "T K"]
    """Row of each edge; 0 where there is no edge."""
    present: Float[Tensor, "T K"] | None
    """1 where there is an edge and 0 elsewhere; None if all are there."""
    weights: Float[Tensor, "T K"]
    """Factor of each edge, 0 where there is none; carries the router's gradient."""
    counts: Int[Tensor, " E"]

    @classmethod
    def of(cls, routing: Routing) -> "ExpertOrder":
        """Sorts the edges of `routing`."""
        order = torch.argsort(routing.expert_ids, stable=True)
        slots = routing.token_ids * routing.num_choices + routing.choices
        sorted_slots = slots[order]
        shape = (routing.num_tokens, routing.num_choices)
        places = slots.new_zeros(shape[0] * shape[1])
        places.index_copy_(0, sorted_slots, torch.arange(slots.numel(), device=slots.device))
        is_full = slots.numel() == places.numel()
        return cls(
            token_ids=routing.token_ids[order],
            slots=sorted_slots,
            places=places.view(shape),
            present=None
            if is_full
            else routing.weights.new_zeros(len(places)).index_fill(0, slots, 1.0).view(shape),
            weights=routing.weight_table(),
            counts=counts_of(routing.expert_ids, routing.num_experts),
        )

    def gather(self, x: Float[Tensor, "T D"]) -> Float[Tensor, "N D"]:
        """Gathers one row of `x` per edge."""
        return GatherRows.apply(x, self.token_ids, self.places, self.present)

    def combine(self, rows: Float[Tensor, "N D"]) -> Float[Tensor, "T D"]:
        """Weighs each edge's row and sums per token; tokens without edges get 0."""
        return CombineRows.apply(rows, self.weights, self.token_ids, self.places, self.slots)


class LocalDispatcher:
    """Gathers rows into expert order and combines them back."""

    def __init__(
        self,
        config: DispatchConfig,
        *,
        num_experts: int,
        group: dist.ProcessGroup | None,
        timeout_s: float = 0.0,
    ):
        assert group is None, "config.check refuses local dispatch with sharded experts"

    def dispatch(self, x: Float[Tensor, "T D"], routing: Routing) -> Dispatched:
        order = ExpertOrder.of(routing)
        return Dispatched(order.gather(x), order.counts.tolist(), order)

    def combine(self, rows: Float[Tensor, "R D"], dispatched: Dispatched) -> Float[Tensor, "T D"]:
        return dispatched.plan.combine(rows)
