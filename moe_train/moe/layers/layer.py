"""Builds the router and the experts that every Mixture-of-Experts layer has, and shards the experts.

T tokens, D model width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moe_train.config.registry import build, layer_class
from moe_train.config.spec import MoESpec
from moe_train.moe.dispatch.dispatcher import Dispatcher
from moe_train.moe.dispatch.through import Beside, Through, one_by_one
from moe_train.moe.experts import Experts, ExpertWeights
from moe_train.moe.layers.whole_sequences import gather_sequences
from moe_train.moe.recompute import Run, kept
from moe_train.moe.routing import RouteContext
from moe_train.parallel.mesh import Mesh
from moe_train.results import MoEStats


def moe_layer(spec: MoESpec, site: str) -> "MoELayer":
    """Returns the kind of layer that the router works in."""
    layer: MoELayer = layer_class(spec.router.kind)(spec, site)
    return layer


def moe_layers_of(model: nn.Module) -> list[tuple[str, "MoELayer"]]:
    """Returns name and module of every MoE layer, lowest first, an encoder's before those of its decoder."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, MoELayer)]


class MoELayer(nn.Module, ABC):
    """Combines a router and experts. It returns statistics and stores none, so recomputation counts once.

    The kinds of layers beside this file say how tokens reach the experts.
    """

    def __init__(self, spec: MoESpec, site: str):
        super().__init__()
        self.spec = spec
        self.router = build(
            "moe.router",
            spec.router,
            d_model=spec.d_model,
            num_experts=spec.num_experts,
            group=spec.group_sequences,
            site=f"{site}.router",
        )
        self.experts = self.make_experts()
        self.run_experts: Run = kept
        self.through: Through = one_by_one
        self.experts.begins_at_zero = spec.router.begins_as_identity
        if spec.scale_expert_gradients:
            self.experts.gradient_scale = spec.num_experts**-0.5

    def make_experts(self) -> ExpertWeights:
        """Returns all experts of the layer; distribute/expert.py leaves a worker its share."""
        spec = self.spec
        return Experts(spec.num_experts, spec.d_model, spec.d_ff, spec.activation)

    def connect(self, mesh: Mesh, dispatcher: Callable[[], Dispatcher]) -> None:
        """Says which part of the experts this worker holds; `dispatcher` returns what brings rows to all parts."""
        self.dispatcher = dispatcher()

    @cached_property
    def dispatcher(self) -> Dispatcher:
        """Returns the dispatcher of a layer that holds all its experts, unless `connect` has set another."""
        spec = self.spec
        return build("moe.dispatch", spec.dispatch, num_experts=spec.num_experts, group=None, timeout_s=0.0)

    def router_input(
        self, x: Float[Tensor, "T D"], residual: Float[Tensor, "T D"] | None
    ) -> Float[Tensor, "T D"]:
        """Returns the router's input: the experts' rows, or the residual stream if the router asks for it."""
        return residual if self.spec.router.scores_residual and residual is not None else x

    def forward(
        self,
        x: Float[Tensor, "T D"],
        context: RouteContext,
        residual: Float[Tensor, "T D"] | None = None,
        beside: Beside | None = None,
    ) -> tuple[Float[Tensor, "T D"], MoEStats]:
        """Returns what the experts make of each token; `x` is the norm of the `residual` stream.

        The rows may be a part of every sequence. The router sees whole ones; what it has decided is the same on all
        workers that have a part, and the rows are left where they are. What `beside` makes is added.
        """
        rows, known = context.rows, context.decision
        scored, whole = self.router_input(x, residual), context
        if rows.whole is not None:
            scored, whole = gather_sequences(scored, rows), replace(context, rows=rows.whole)
        decision, stats = (
            self.route(scored, whole) if known is None else known.once(self.route, scored, whole)
        )
        if beside is not None and self.through is not one_by_one:
            return self.run_experts(self.through_experts, x, decision, context, beside), stats
        y = self.run_experts(self.through_experts, x, decision, context)
        return y if beside is None else y + self.run_experts(beside.part, beside.x), stats

    @abstractmethod
    def route(self, x: Float[Tensor, "T D"], context: RouteContext) -> tuple[Any, MoEStats]:
        """Decides which experts see which rows, given the router's input; returns this and the statistics.

        No expert has seen a row by then, so whatever comes after may be repeated, or cut, without asking the router.
        """

    @abstractmethod
    def through_experts(
        self,
        x: Float[Tensor, "T D"],
        decision: Any,
        context: RouteContext,
        beside: Beside | None = None,
    ) -> Float[Tensor, "T D"]:
        """Returns what the experts make of each token, as `route` has decided. Collective over the expert group.

        With `beside`, which only layers that go by `self.through` get, the sum with what it makes.
        """


def compute_dtype(x: Tensor) -> torch.dtype:
    """Returns the precision of matrix products here: autocast's, or the input's own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
