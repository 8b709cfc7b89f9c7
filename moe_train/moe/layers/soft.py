"""Implements the layer of Soft MoE: experts work on slots, which are mixtures of a sequence's tokens.

Edges from tokens cannot say this, for every token is in every slot; but a slot is a row for one expert, so from there
on dispatchers and experts serve as in any other layer, wherever the experts are.
T tokens, B sequences, S tokens of one, N slots of one, D model width, E experts.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from moe_train.moe.dispatch.through import Beside
from moe_train.moe.experts import Experts
from moe_train.moe.figures import stats_of
from moe_train.moe.layers.layer import MoELayer, compute_dtype
from moe_train.moe.layers.whole_sequences import gather_sequences, split_sequences
from moe_train.moe.routers.edges import table_routing
from moe_train.moe.routing import RouteContext, Routing
from moe_train.results import MoEStats


class Mixing(NamedTuple):
    """Holds how tokens are mixed into slots and slots into tokens."""

    dispatch: Float[Tensor, "B S N"]
    """Part of each token in each slot."""
    combine: Float[Tensor, "B S N"]
    """Part of each slot's result in each token."""
    slots: Routing
    """Edges from slots to their experts, N of a sequence."""


class SoftLayer(MoELayer):
    """Mixes tokens into slots, applies each slot's expert, and mixes the results into tokens."""

    experts: Experts

    def route(self, x: Float[Tensor, "T D"], context: RouteContext) -> tuple[Mixing, MoEStats]:
        """Returns the mixtures; `load` counts slots, which are always even."""
        dispatch, combine, figures = self.router(x, context)
        sequences, _, count = dispatch.shape
        experts = torch.arange(self.spec.num_experts, device=x.device)
        of_slots = experts.repeat_interleave(count // len(experts)).repeat(sequences)
        routing = table_routing(
            of_slots.unsqueeze(1),
            torch.ones(len(of_slots), 1, device=x.device),
            self.spec.num_experts,
            figures=figures,
        )
        return Mixing(dispatch, combine, routing), stats_of(routing, routing, context)

    def through_experts(
        self,
        x: Float[Tensor, "T D"],
        decision: Mixing,
        context: RouteContext,
        beside: Beside | None = None,
    ) -> Float[Tensor, "T D"]:
        """Returns a mixture of all slots' results for every token."""
        dtype, places = compute_dtype(x), context.rows.of_whole_sequences
        rows = places.lay_out(gather_sequences(x, context.rows))
        slots = torch.bmm(decision.dispatch.to(dtype).transpose(1, 2), rows.to(dtype))
        results, z = self.through(
            self.dispatcher, slots.flatten(0, 1), decision.slots, self.experts, beside=beside
        )
        y = results.view_as(slots)
        mixed = places.take(torch.bmm(decision.combine.to(dtype), y)).to(x.dtype)
        mine = split_sequences(mixed, context.rows)
        return mine if z is None else mine + z
