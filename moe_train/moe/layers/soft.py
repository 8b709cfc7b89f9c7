"""Implements the layer of Soft MoE: experts work on slots, which are mixtures of a sequence's tokens.

Edges from tokens cannot say this, for every token is in every slot; but a slot is a row for one expert, so from there
on dispatchers and experts serve as in any other layer, wherever the experts are.
T tokens, B sequences, S tokens of one, N slots of one, D model width, E experts.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from moe_train.moe.figures import stats_of
from moe_train.moe.layers.layer import MoELayer, compute_dtype
from moe_train.moe.routers.edges import table_routing
from moe_train.moe.routing import RouteContext
from moe_train.results import MoEStats


class SoftLayer(MoELayer):
    """Mixes tokens into slots, applies each slot's expert, and mixes the results into tokens."""

    def forward(
        self, x: Float[Tensor, "T D"], context: RouteContext, residual: Float[Tensor, "T D"] | None = None
    ) -> tuple[Float[Tensor, "T D"], MoEStats]:
        """Returns a mixture of all slots' results for every token; `load` counts slots, which are always even."""
        dispatch, combine, spread = self.router(self.router_input(x, residual), context)
        dtype = compute_dtype(x)
        rows = context.rows.lay_out(x)
        slots = torch.bmm(dispatch.to(dtype).transpose(1, 2), rows.to(dtype))
        sequences, count = slots.shape[:2]
        experts = torch.arange(self.spec.num_experts, device=x.device)
        of_slots = experts.repeat_interleave(count // len(experts)).repeat(sequences)
        routing = table_routing(
            of_slots.unsqueeze(1),
            torch.ones(len(of_slots), 1, device=x.device),
            self.spec.num_experts,
            spread=spread,
        )
        dispatched = self.dispatcher.dispatch(slots.flatten(0, 1), routing)
        results = self.experts(dispatched.rows, dispatched.counts, dispatched.empty_like)
        y = self.dispatcher.combine(results, dispatched).view_as(slots)
        mixed = context.rows.take(torch.bmm(combine.to(dtype), y))
        return mixed.to(x.dtype), stats_of(routing, routing, context)
