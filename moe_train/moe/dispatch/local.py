"""The dispatcher for a worker that holds all experts: a permutation, no communication."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from moe_train.config.kinds import DispatchConfig
from moe_train.moe.dispatch.dispatcher import Dispatched
from moe_train.moe.permute import CombineRows, GatherRows
from moe_train.moe.routing import Routing


@dataclass(frozen=True)
class ExpertOrder:
    """The edges of a routing in expert order (stable: by expert, then token, then choice)."""

    slots: Int[Tensor, " N"]
    weights: Float[Tensor, " N"]
    counts: Int[Tensor, " E"]
    num_tokens: int
    num_choices: int

    @classmethod
    def of(cls, routing: Routing) -> "ExpertOrder":
        """Sort the edges of `routing`."""
        order = torch.argsort(routing.expert_ids, stable=True)
        slots = routing.token_ids * routing.num_choices + routing.choices
        return cls(
            slots=slots[order],
            weights=routing.weights[order],
            counts=torch.bincount(routing.expert_ids, minlength=routing.num_experts),
            num_tokens=routing.num_tokens,
            num_choices=routing.num_choices,
        )

    def gather(self, x: Float[Tensor, "T D"]) -> Float[Tensor, "N D"]:
        """One row of `x` per edge."""
        return GatherRows.apply(x, self.slots, self.num_choices)

    def combine(self, rows: Float[Tensor, "N D"]) -> Float[Tensor, "T D"]:
        """Weigh each edge's row and sum per token."""
        return CombineRows.apply(rows, self.weights, self.slots, self.num_tokens, self.num_choices)


class LocalDispatcher:
    """Gathers rows into expert order and combines them back."""

    def __init__(self, config: DispatchConfig, *, num_experts: int, group: dist.ProcessGroup | None):
        assert group is None, "config.check refuses local dispatch with shared-out experts"

    def dispatch(self, x: Float[Tensor, "T D"], routing: Routing) -> Dispatched:
        order = ExpertOrder.of(routing)
        return Dispatched(order.gather(x), order.counts.tolist(), order)

    def combine(self, rows: Float[Tensor, "R D"], dispatched: Dispatched) -> Float[Tensor, "T D"]:
        return dispatched.plan.combine(rows)
