"""Lists the figures that MoE layers count, and how a row of metrics.jsonl shows each of them.

A new one is a line in TOTALS or MEANS and nothing else: layers count what these list (`stats_of`), and the monitor sums
it over microbatches, ranks and steps, saves it with checkpoints and writes it into rows, all by name. docs/metrics.md
shows how to add one. Figures of evenness follow from the loads: see monitor/balance.py.

T tokens, N assignments, E experts, all of one layer on this rank.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moe_train.moe.counts import counts_of
from moe_train.moe.routing import RouteContext, Routing
from moe_train.results import LOAD, MoEStats

UNITS = 2**20
"""Fractions are counted in units of 2^-20: sums of integers depend neither on their order nor on resumes."""

Totals = Mapping[str, Any]
"""What a layer counted in a window, by name of the figure; NaN where a part of the window was not measured."""


@dataclass(frozen=True)
class LayerPass:
    """Holds one forward pass of one layer over this rank's tokens."""

    assigned: Routing
    """The assignments before the capacity limit."""
    kept: Routing
    """Those within it."""
    context: RouteContext


@dataclass(frozen=True)
class Figure:
    """Defines a key of the `moe` part of a training row, with a value for each layer."""

    name: str
    show: Callable[[Totals], Any] | None
    """Returns a layer's value in a row; None: rows show the count as a part of other figures only."""
    count: Callable[[LayerPass], Tensor] | None = None
    """Returns what is summed over passes: a number, or one for each expert. None: the figure follows from others."""
    is_per_expert: bool = False
    is_fraction: bool = False
    """It is counted in UNITS, so its sum over a window must stay below 2^33; that of others below 2^53."""


def total(name: str, count: Callable[[LayerPass], Tensor], *, is_per_expert: bool = False) -> Figure:
    """Defines a whole number, of which a row shows the sum."""
    return Figure(name, itemgetter(name), count, is_per_expert)


def mean_over_tokens(
    name: str, count: Callable[[LayerPass], Tensor], *, is_never_zero: bool = False
) -> Figure:
    """Defines a sum over tokens, which a row divides by their number; with `is_never_zero`, 0 means none."""
    return Figure(name, partial(_over_tokens, name, is_never_zero), count, is_fraction=True)


def stats_of(assigned: Routing, kept: Routing, context: RouteContext) -> MoEStats:
    """Returns the statistics of one forward pass of a layer."""
    layer = LayerPass(assigned, kept, context)
    with torch.no_grad():
        counts = {
            figure.name: figure.count(layer) for figure in (*TOTALS, *MEANS) if figure.count is not None
        }
    return MoEStats(
        counts=counts,
        losses=dict(assigned.losses),
        coefficients=dict(assigned.coefficients),
        policy=assigned.policy,
        batch_losses=dict(assigned.batch_losses),
    )


def drop_rate(totals: Totals) -> float:
    """Returns the share of the assignments that found no room in their expert."""
    assignments = sum(totals[LOAD])
    return totals["dropped"] / assignments if assignments else math.nan


def experts_per_token(totals: Totals) -> float:
    """Returns the number of experts that worked on a token, a mean over tokens."""
    return _ratio(sum(totals[LOAD]) - totals["dropped"], totals["tokens"])


def _load(layer: LayerPass) -> Int[Tensor, " E"]:
    return counts_of(layer.assigned.expert_ids, layer.assigned.num_experts)


def _dropped(layer: LayerPass) -> Int[Tensor, ""]:
    return _number(layer, layer.assigned.expert_ids.numel() - layer.kept.expert_ids.numel())


def _tokens(layer: LayerPass) -> Int[Tensor, ""]:
    real = layer.context.rows.num_real
    return real if isinstance(real, Tensor) else _number(layer, real)


def _of_spread(field: str) -> Callable[[LayerPass], Float[Tensor, ""]]:
    """Returns what counts a field of the router's spread: 0 for routers without logits."""

    def count(layer: LayerPass) -> Float[Tensor, ""]:
        spread = layer.assigned.spread
        value: Tensor = layer.assigned.weights.new_zeros(()) if spread is None else getattr(spread, field)
        return value

    return count


def _number(layer: LayerPass, value: int) -> Int[Tensor, ""]:
    """Returns an integer that the host knows, on the layer's device, without waiting for the device."""
    return layer.assigned.expert_ids.new_full((), value)


def _over_tokens(name: str, is_never_zero: bool, totals: Totals) -> float:
    mean = _ratio(totals[name], totals["tokens"])
    return math.nan if is_never_zero and mean == 0 else mean


def _ratio(part: int | float, whole: int | float) -> float:
    return part / whole if whole else math.nan


TOTALS = (
    total(LOAD, _load, is_per_expert=True),
    total("dropped", _dropped),
    Figure("tokens", None, _tokens),
)
"""Whole numbers, which come first in a row."""

MEANS = (
    Figure("drop_rate", drop_rate),
    mean_over_tokens("router_entropy", _of_spread("entropy")),
    mean_over_tokens("router_top_probability", _of_spread("top_probability"), is_never_zero=True),
    Figure("experts_per_token", experts_per_token),
)
"""Shares and means, which come last."""
