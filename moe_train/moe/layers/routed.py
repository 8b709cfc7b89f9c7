"""Implements the layer of routers that return edges: route, limit, dispatch, apply the experts, combine.

T tokens, D model width, E experts, R rows that arrive here, F hidden width.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from moe_train.config.capacity import capacity
from moe_train.config.spec import MoESpec
from moe_train.moe.capacity import first_with_room, within_capacity
from moe_train.moe.dispatch.dispatcher import Dispatcher
from moe_train.moe.dispatch.through import Beside, Dropout
from moe_train.moe.experts import Experts
from moe_train.moe.figures import stats_of
from moe_train.moe.layers.layer import MoELayer, compute_dtype
from moe_train.moe.layers.whole_sequences import count_by_rank
from moe_train.moe.routing import RouteContext, Routing
from moe_train.moe.token_numbers import packed, token_numbers, unpack
from moe_train.parallel.mesh import Mesh
from moe_train.results import MoEStats


class RoutedLayer(MoELayer):
    """Sends each token to the experts of its edges that have room for it."""

    experts: Experts

    def __init__(self, spec: MoESpec, site: str):
        super().__init__(spec, site)
        self.first_expert = self.first_unit = 0
        self.dropout_site = f"{site}.expert_dropout"

    def connect(self, mesh: Mesh, dispatcher: Callable[[], Dispatcher]) -> None:
        """Says which part of the experts this worker holds."""
        super().connect(mesh, dispatcher)
        self.first_expert = mesh.expert.rank * (self.spec.num_experts // mesh.expert.size)
        self.first_unit = mesh.expert_tensor.rank * (self.spec.d_ff // mesh.expert_tensor.size)

    def route(self, x: Float[Tensor, "T D"], context: RouteContext) -> tuple[Routing, MoEStats]:
        """Returns the edges that their experts have room for."""
        routing: Routing = self.router(x, context)
        if (real := context.rows.real) is not None:
            routing = routing.keep(real[routing.token_ids])  # padding goes nowhere and takes no slot
        slots = self._capacity(routing, context)
        kept = self._limit(routing, context, slots)
        assigned = routing.first_choices() if routing.alternatives else routing
        if routing.normalize_kept:
            kept = kept.normalized()
        groups = -(-context.rows.values.numel() // self._group_tokens(context))
        return kept, stats_of(assigned, kept, context, (slots or 0) * routing.num_experts * groups)

    def through_experts(
        self,
        x: Float[Tensor, "T D"],
        decision: Routing,
        context: RouteContext,
        beside: Beside | None = None,
    ) -> Float[Tensor, "T D"]:
        """Returns the weighted sum of each token's experts; 0 for a token that all its experts refused."""
        decision, dtype = count_by_rank(decision, context.rows), compute_dtype(x)
        dropout = self._expert_dropout(decision.num_experts, context, dtype)
        y, z = self.through(self.dispatcher, x.to(dtype), decision, self.experts, dropout, beside)
        return y.to(x.dtype) if z is None else y.to(x.dtype) + z

    def _expert_dropout(self, num_experts: int, context: RouteContext, dtype: torch.dtype) -> Dropout | None:
        """Returns dropout of the hidden units of the rows that arrive here; None without dropout.

        A factor is a function of (seed, step, token, expert, unit), wherever the token comes from, so each row's token
        is told by a second exchange, of a few numbers for each row. Where this worker holds a slice of each expert,
        its units take their part of the expert's draws.
        """
        rate = self.spec.expert_dropout
        if rate == 0 or not context.training:
            return None

        def factors(numbers: Float[Tensor, "R 4"], counts: list[int]) -> Float[Tensor, "R F"]:
            tokens = unpack(numbers)
            local = torch.arange(len(counts), device=tokens.device)
            sizes = torch.tensor(counts, device=tokens.device)
            experts = local.repeat_interleave(sizes, output_size=len(tokens)) + self.first_expert
            streams = tokens * num_experts + experts
            draws = context.forward_pass.random.uniform(self.dropout_site, streams, self.spec.d_ff)
            draws = draws.narrow(1, self.first_unit, self.experts.w_out.shape[1])
            return (draws >= rate).to(dtype) / (1 - rate)

        return Dropout(packed(token_numbers(context.rows)), factors)

    def _capacity(self, routing: Routing, context: RouteContext) -> int | None:
        """Returns how many assignments an expert takes of a routing group; None: all."""
        factor = self.spec.capacity_factor if context.training else self.spec.eval_capacity_factor
        if factor is None:
            return None
        return capacity(
            self.spec.capacity_convention,
            factor,
            self._group_tokens(context),
            routing.num_experts,
            1 if routing.alternatives else routing.num_choices,
            self.spec.min_capacity,
        )

    def _limit(self, routing: Routing, context: RouteContext, slots: int | None) -> Routing:
        """Drops the edges beyond the capacity of their expert in their group, and alternatives that are not needed."""
        if slots is None:
            return routing.first_choices() if routing.alternatives else routing
        size, rows = self._group_tokens(context), context.rows
        if routing.alternatives:
            return routing.keep(first_with_room(routing, size, slots, rows)).as_first_choices()
        return routing.keep(within_capacity(routing, size, slots, rows))

    def _group_tokens(self, context: RouteContext) -> int:
        """Returns the number of places of a routing group."""
        return self.spec.group_sequences * context.rows.length
