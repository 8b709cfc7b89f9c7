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
SQUARE_UNITS = 2**6
"""Squares of logits are counted in units of 2^-6, so that a window of 2^27 tokens holds them up to HIGHEST_SQUARE."""
HIGHEST_SQUARE = 2**20
"""A mean square of a pass counts as no more than this: logits of 1,024."""

NOT_FINITE = "router_not_finite"
"""Counts forward passes in which a figure of the router is not a finite number."""

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
    slots: int = 0
    """Assignments that the experts have room for, over all routing groups; 0 without a limit."""


@dataclass(frozen=True)
class Figure:
    """Defines a key of the `moe` part of a training row, with a value for each layer."""

    name: str
    show: Callable[[Totals], Any] | None
    """Returns a layer's value in a row; None: rows show the count as a part of other figures only."""
    count: Callable[[LayerPass], Tensor] | None = None
    """Returns what is summed over passes: a number, or one for each expert. None: the figure follows from others."""
    is_per_expert: bool = False
    units: int | None = None
    """In how many parts of 1 a fraction is counted: a window's sum must stay below 2^53 parts. None: whole numbers."""


def total(name: str, count: Callable[[LayerPass], Tensor], *, is_per_expert: bool = False) -> Figure:
    """Defines a whole number, of which a row shows the sum."""
    return Figure(name, itemgetter(name), count, is_per_expert)


def mean_over_tokens(
    name: str, count: Callable[[LayerPass], Tensor], *, is_never_zero: bool = False
) -> Figure:
    """Defines a sum over tokens, which a row divides by their number; with `is_never_zero`, 0 means none."""
    return Figure(name, partial(_over_tokens, name, is_never_zero), count, units=UNITS)


def mean_square(
    name: str, count: Callable[[LayerPass], Tensor], show: Callable[[float], float] = float
) -> Figure:
    """Defines a sum over tokens of squares, of which a row shows `show` of the mean; without logits there is none."""
    return Figure(name, lambda totals: show(_over_tokens(name, True, totals)), count, units=SQUARE_UNITS)


def stats_of(assigned: Routing, kept: Routing, context: RouteContext, slots: int = 0) -> MoEStats:
    """Returns the statistics of one forward pass of a layer whose experts have `slots` in all; 0 without a limit."""
    layer = LayerPass(assigned, kept, context, slots)
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


def capacity_use(totals: Totals) -> float:
    """Returns the share of the experts' slots that were taken; NaN without a limit."""
    return _ratio(sum(totals[LOAD]) - totals["dropped"], totals["slots"])


def experts_per_token(totals: Totals) -> float:
    """Returns the number of experts that worked on a token, a mean over tokens."""
    return _ratio(sum(totals[LOAD]) - totals["dropped"], totals["tokens"])


def _load(layer: LayerPass) -> Int[Tensor, " E"]:
    return counts_of(layer.assigned.expert_ids, layer.assigned.num_experts)


def _dropped(layer: LayerPass) -> Int[Tensor, ""]:
    return _number(layer, layer.assigned.expert_ids.numel() - layer.kept.expert_ids.numel())


def _slots(layer: LayerPass) -> Int[Tensor, ""]:
    return _number(layer, layer.slots)


def _tokens(layer: LayerPass) -> Int[Tensor, ""]:
    real = layer.context.rows.num_real
    return real if isinstance(real, Tensor) else _number(layer, real)


def _of_router(field: str) -> Callable[[LayerPass], Float[Tensor, ""]]:
    """Returns what counts one of the router's figures: 0 for routers without logits, and where they are not finite."""

    def count(layer: LayerPass) -> Float[Tensor, ""]:
        figures = layer.assigned.figures
        if figures is None:
            return layer.assigned.weights.new_zeros(())
        value: Tensor = getattr(figures, field)
        return value.nan_to_num(0.0, 0.0, 0.0)

    return count


def _square_of_router(field: str) -> Callable[[LayerPass], Float[Tensor, ""]]:
    """Returns what counts one of the router's mean squares, up to HIGHEST_SQUARE for each token."""
    count = _of_router(field)
    return lambda layer: count(layer).minimum(_tokens(layer) * HIGHEST_SQUARE)


def _not_finite(layer: LayerPass) -> Int[Tensor, ""]:
    figures = layer.assigned.figures
    if figures is None:
        return _number(layer, 0)
    return (~torch.stack(figures).isfinite().all()).long()


def _number(layer: LayerPass, value: int) -> Int[Tensor, ""]:
    """Returns an integer that the host knows, on the layer's device, without waiting for the device."""
    return layer.assigned.expert_ids.new_full((), value)


def _over_tokens(name: str, is_never_zero: bool, totals: Totals) -> float:
    if totals[NOT_FINITE] > 0:
        return math.nan
    mean = _ratio(totals[name], totals["tokens"])
    return math.nan if is_never_zero and mean == 0 else mean


def _ratio(part: int | float, whole: int | float) -> float:
    return part / whole if whole else math.nan


TOTALS = (
    total(LOAD, _load, is_per_expert=True),
    total("dropped", _dropped),
    total(NOT_FINITE, _not_finite),
    Figure("tokens", None, _tokens),
    Figure("slots", None, _slots),
)
"""Whole numbers, which come first in a row."""

MEANS = (
    Figure("drop_rate", drop_rate),
    mean_over_tokens("router_entropy", _of_router("entropy")),
    mean_over_tokens("router_top_probability", _of_router("top_probability"), is_never_zero=True),
    mean_square("router_z", _square_of_router("z")),
    mean_square("router_logit_rms", _square_of_router("logit_square"), math.sqrt),
    Figure("capacity_use", capacity_use),
    Figure("experts_per_token", experts_per_token),
)
"""Shares and means, which come last."""
