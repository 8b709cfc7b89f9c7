"""Sums what MoE layers count, over a logging window and over a span, for the price of one all-reduce per row.

Each step adds its statistics to integers on the device, without a host sync. When a row is due, these and the row's
scalars are summed over the ranks together and copied to the host once. What is counted, and how a row shows it, is
listed in moe/figures.py; balance.py has the figures of evenness, those of a span of steps (recent.py). Checkpoints hold
counts by name: what one lacks was not measured in the window that it left open, and the row shows null for it.

L MoE layers, E experts of the layer that has most.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from moe_train.moe.figures import MEANS, TOTALS, Figure, Totals
from moe_train.monitor import balance
from moe_train.monitor.positional import by_name
from moe_train.monitor.recent import RecentLoads
from moe_train.parallel.axis import Axis
from moe_train.results import LOAD, MoEStats, counts_of_layers

EXACT_LIMIT = 2**53
"""Integers below this are exact in float64, and so is every sum of them that stays below."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadSummary:
    """One logging window, over all ranks."""

    totals: list[Totals]
    """[L]: what each layer counted."""
    recent: list[list[int]]
    """[L][E of the layer]: loads of the span, by which loads are judged to be even or not."""
    scalars: dict[str, float]
    """What `reduce` was given by name, a mean over ranks."""
    expert_degree: int = 1
    """Workers that share out the experts of a layer."""

    def as_row(self) -> dict[str, Any]:
        """Returns the `moe` part of a training row; every list is empty for a dense model."""
        return {
            **self._shown(TOTALS),
            **{name: [figure(load) for load in self.recent] for name, figure in balance.FIGURES.items()},
            "device_load": [balance.device_load(load, self.expert_degree) for load in self.recent],
            **self._shown(MEANS),
        }

    def _shown(self, figures: Sequence[Figure]) -> dict[str, list[Any]]:
        """Returns [L] values of each figure that rows show."""
        shown = {figure.name: figure.show for figure in figures if figure.show is not None}
        return {name: [show(layer) for layer in self.totals] for name, show in shown.items()}


class LoadWindow:
    """This rank's counts since the last row: `add` every step, `reduce` when a row is due."""

    def __init__(
        self, num_experts: Sequence[int], device: torch.device, bucket_steps: int = 1, expert_degree: int = 1
    ) -> None:
        """`num_experts` are those of each MoE layer; `bucket_steps` are the recipe's (recent.py)."""
        self._num_experts, self._expert_degree = tuple(num_experts), expert_degree
        self._figures = {figure.name: figure for figure in (*TOTALS, *MEANS) if figure.count is not None}
        num_layers, most = len(num_experts), max(num_experts, default=0)
        self._recent = RecentLoads(num_layers, most, bucket_steps, device)
        self._counts: dict[str, Int[Tensor, "L ..."]] = {
            name: torch.zeros(
                (num_layers, most) if figure.is_per_expert else (num_layers,),
                dtype=torch.int64,
                device=device,
            )
            for name, figure in self._figures.items()
        }
        self._missing: set[str] = set()  # counts that the checkpoint lacked in which this window began

    def add(self, stats: tuple[tuple[MoEStats, ...], ...], step: int) -> None:
        """Count update `step`, the first of which is 1, without a host sync or a collective.

        `stats` are this rank's, per microbatch, pass and MoE layer.
        """
        if not self._num_experts:
            return
        self._recent.begin(step)
        for layers in stats:
            assert len(layers) == len(self._num_experts), (len(layers), self._num_experts)
            numbers = {name: _integers(figure, layers) for name, figure in self._figures.items()}
            self._recent.add(numbers[LOAD])
            for name, counts in self._counts.items():
                counts += numbers[name]

    def reduce(self, data: Axis, scalars: Mapping[str, Tensor]) -> LoadSummary:
        """Sum the window over the ranks, with the mean of `scalars` over them, and begin a new window.

        Collective: one all-reduce, then one copy to the host. All ranks give the same names, in one order.
        """
        counts, recent, means = self._sums(data, scalars)
        totals = [self._totals(counts, layer) for layer in range(len(self._num_experts))]
        for own in self._counts.values():
            own.zero_()
        self._missing = set()
        loads = [row[:experts] for row, experts in zip(recent, self._num_experts, strict=True)]
        return LoadSummary(totals, loads, means, self._expert_degree)

    def state(self, data: Axis) -> dict[str, Any]:
        """Returns the open window over all ranks, as JSON-ready data for a checkpoint. Collective; it stays open."""
        counts, _, _ = self._sums(data, {})
        measured = {name: count for name, count in counts.items() if name not in self._missing}
        return {"counts": measured, "recent": self._recent.state(data)}

    def load_state(self, state: Mapping[str, Any], data: Axis) -> None:
        """Continue the window of `state`, on any number of ranks: rank 0 takes all that was counted.

        A window that is still empty lacks nothing, whatever the checkpoint counts.
        """
        if not self._num_experts:
            return
        named = by_name(state, max(self._num_experts))
        self._recent.load_state(named["recent"], data)
        saved = {name: torch.tensor(count, dtype=torch.int64) for name, count in named["counts"].items()}
        is_empty = bool(saved) and not any(count.any() for count in saved.values())
        self._missing = {
            name
            for name, counts in self._counts.items()
            if not is_empty and (name not in saved or saved[name].numel() != counts.numel())
        }
        for name, counts in self._counts.items():
            counts.zero_()
            if data.is_first and not is_empty and name not in self._missing:
                counts.copy_(saved[name].view(counts.shape))
        if data.is_first:
            unknown = (saved.keys() | named["recent"].keys()) - self._counts.keys()
            _report(sorted(self._missing), sorted(unknown))

    def _totals(self, counts: Mapping[str, list[Any]], layer: int) -> Totals:
        """Returns what a layer counted over all ranks; NaN for what its window lacks."""
        totals: dict[str, Any] = {}
        for name, figure in self._figures.items():
            is_missing, experts = name in self._missing, self._num_experts[layer]
            if figure.is_per_expert:
                totals[name] = [math.nan] * experts if is_missing else counts[name][layer][:experts]
            else:
                count = math.nan if is_missing else counts[name][layer]
                totals[name] = count / figure.units if figure.units else count
        return totals

    def _sums(
        self, data: Axis, scalars: Mapping[str, Tensor]
    ) -> tuple[dict[str, list[Any]], list[list[int]], dict[str, float]]:
        """Returns global counts by name, [L] or [L][E], the span's loads [L][E], and the means of `scalars`.

        Counts and losses travel in one float64 buffer, for one all-reduce: it holds the integers exactly.
        """
        integers = [*self._counts.values(), self._recent.total()]
        parts = [part.flatten().double() for part in integers]
        parts += [scalar.detach().double().reshape(1) for scalar in scalars.values()]
        host: Float64[Tensor, " N"] = data.sum(torch.cat(parts)).cpu()
        *whole, last = host.split([part.numel() for part in integers] + [len(scalars)])
        assert all((part.abs() < EXACT_LIMIT).all() for part in whole), "a window must count less than 2^53"
        *counts, recent = (
            part.long().view(own.shape).tolist() for part, own in zip(whole, integers, strict=True)
        )
        means = {name: total / data.size for name, total in zip(scalars, last.tolist(), strict=True)}
        return dict(zip(self._counts, counts, strict=True)), recent, means


def _integers(figure: Figure, layers: Sequence[MoEStats]) -> Int[Tensor, "L ..."]:
    """Returns what all layers count of a figure in one pass, fractions in its units."""
    values = counts_of_layers(layers, figure.name)
    if not figure.units:
        return values
    # Counts are finite (see moe/figures.py); what one of them overlooks must not end the run in the cast.
    return (values.double() * figure.units).round().nan_to_num(0.0, 0.0, 0.0).long()


def _report(missing: Sequence[str], unknown: Sequence[str]) -> None:
    """Log what a checkpoint and this version do not both count."""
    if missing:
        log.warning("The checkpoint has no count of %s: the next row shows null there.", ", ".join(missing))
    if unknown:
        log.warning("The checkpoint counts %s, which this version does not: ignored.", ", ".join(unknown))
