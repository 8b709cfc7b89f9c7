"""Counts what every expert got, over a logging window and over a span, for the price of one all-reduce per row.

Each step adds its statistics to one integer buffer on the device, without a host sync. When a row is due, the
buffer and the row's scalars are summed over the ranks together and copied to the host once. balance.py turns
the counts into figures, those of evenness over a span of steps (recent.py); docs/metrics.md lists them.

L MoE layers, E experts of the layer that has most.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from moe_train.errors import CheckpointError
from moe_train.monitor import balance
from moe_train.monitor.recent import RecentLoads
from moe_train.parallel.axis import Axis
from moe_train.results import MoEStats, padded_loads

UNITS = 2**20
"""Router entropy and probability are counted in units of 2^-20: sums of integers do not depend on order or resumes."""
NUM_FIGURES = 4
"""Columns of the buffer after the loads: dropped assignments, router entropy and top probability in UNITS, tokens."""
EXACT_LIMIT = 2**53
"""Integers below this are exact in float64, and so is every sum of them that stays below."""


@dataclass(frozen=True)
class LoadSummary:
    """One logging window, over all ranks."""

    load: list[list[int]]
    """[L][E of the layer]: assignments before the capacity limit."""
    recent: list[list[int]]
    """[L][E of the layer]: the same over the span, by which loads are judged to be even or not."""
    dropped: list[int]
    """[L]: assignments beyond the capacity limit."""
    router_entropy: list[float]
    """[L]: mean over tokens of the entropy of the router's distribution, in nats."""
    router_top_probability: list[float]
    """[L]: mean over tokens of the largest probability of that distribution; NaN without one."""
    experts_per_token: list[float]
    """[L]: assignments within the capacity limit, a mean over tokens."""
    scalars: dict[str, float]
    """What `reduce` was given by name, a mean over ranks."""

    def as_row(self) -> dict[str, Any]:
        """The `moe` part of a training row; every list is empty for a dense model."""
        return {
            "load": self.load,
            "dropped": self.dropped,
            **{name: [figure(load) for load in self.recent] for name, figure in balance.FIGURES.items()},
            "drop_rate": [balance.drop_rate(*layer) for layer in zip(self.load, self.dropped, strict=True)],
            "router_entropy": self.router_entropy,
            "router_top_probability": self.router_top_probability,
            "experts_per_token": self.experts_per_token,
        }


class LoadWindow:
    """This rank's counts since the last row: `add` every step, `reduce` when a row is due."""

    def __init__(self, num_experts: Sequence[int], device: torch.device, bucket_steps: int = 1) -> None:
        """`num_experts` are those of each MoE layer; `bucket_steps` are the recipe's (recent.py)."""
        self._num_experts = tuple(num_experts)
        self._recent = RecentLoads(len(num_experts), max(num_experts, default=0), bucket_steps, device)
        # Columns: the load of each expert, zeros in a layer that has fewer, then NUM_FIGURES figures.
        self._counts: Int[Tensor, "L E_plus_4"] = torch.zeros(
            len(num_experts), max(num_experts, default=0) + NUM_FIGURES, dtype=torch.int64, device=device
        )

    def add(self, stats: tuple[tuple[MoEStats, ...], ...], step: int) -> None:
        """Count update `step`, the first of which is 1, without a host sync or a collective.

        `stats` are this rank's, per microbatch, pass and MoE layer.
        """
        if not self._num_experts:
            return
        self._recent.begin(step)
        for layers in stats:
            assert len(layers) == len(self._num_experts), (len(layers), self._num_experts)
            sums = [(layer.router_entropy.detach(), layer.router_top_probability) for layer in layers]
            figures = torch.stack([torch.stack(of_layer) for of_layer in sums]).double()
            # A router that is not finite makes the loss so too, which ends the run; here the cast must hold.
            units = (figures * UNITS).round().nan_to_num(0.0, 0.0, 0.0).long()
            loads = padded_loads(layers)
            self._recent.add(loads)
            self._counts[:, :-NUM_FIGURES] += loads
            self._counts[:, -4] += torch.stack([layer.dropped for layer in layers])
            self._counts[:, -3:-1] += units
            for place, layer in enumerate(layers):
                self._counts[place, -1] += layer.tokens

    def reduce(self, data: Axis, scalars: Mapping[str, Tensor]) -> LoadSummary:
        """Sum the window over the ranks, with the mean of `scalars` over them, and begin a new window.

        Collective: one all-reduce, then one copy to the host. All ranks give the same names, in one order.
        """
        totals, means, recent = self._totals(data, scalars)
        self._counts.zero_()
        loads = [row[:experts] for row, experts in zip(totals, self._num_experts, strict=True)]
        dropped, entropies, tops, tokens = (
            [row[column] for row in totals] for column in range(-NUM_FIGURES, 0)
        )
        kept = [sum(load) - beyond for load, beyond in zip(loads, dropped, strict=True)]
        return LoadSummary(
            load=loads,
            recent=[row[:experts] for row, experts in zip(recent, self._num_experts, strict=True)],
            dropped=dropped,
            router_entropy=_means(entropies, tokens, UNITS),
            # The largest probability is never 0: where the sum is, there is no distribution.
            router_top_probability=[mean or math.nan for mean in _means(tops, tokens, UNITS)],
            experts_per_token=_means(kept, tokens),
            scalars=means,
        )

    def state(self, data: Axis) -> dict[str, Any]:
        """The open window over all ranks, as JSON-ready data for a checkpoint. Collective; it stays open."""
        totals, _, _ = self._totals(data, {})
        return {"counts": totals, "recent": self._recent.state(data)}

    def load_state(self, state: Mapping[str, Any], data: Axis) -> None:
        """Go on with the window of `state`, on any number of ranks: rank 0 takes all that was counted.

        Raises CheckpointError for a window that counts other things than this one.
        """
        counts = torch.tensor(state["counts"], dtype=torch.int64)
        if counts.numel() != self._counts.numel():
            raise CheckpointError(
                f"the checkpoint's logging window has the shape {tuple(counts.shape)}, and this moe-train counts "
                f"{tuple(self._counts.shape)}: another version wrote it; go on with that version, or start afresh "
                "with --resume never"
            )
        self._recent.load_state(state.get("recent"), data)
        self._counts.copy_(
            counts.reshape(self._counts.shape) if data.is_first else torch.zeros_like(self._counts)
        )

    def _totals(
        self, data: Axis, scalars: Mapping[str, Tensor]
    ) -> tuple[list[list[int]], dict[str, float], list[list[int]]]:
        """Global counts [L][E + NUM_FIGURES], the means of `scalars`, and the span's loads [L][E].

        Counts and losses travel in one float64 buffer, for one all-reduce: it holds the integers exactly.
        """
        counts = torch.cat((self._counts, self._recent.total()), dim=1)
        parts = [counts.flatten().double()]
        parts += [scalar.detach().double().reshape(1) for scalar in scalars.values()]
        host = data.sum(torch.cat(parts)).tolist()
        num_counts, width = counts.numel(), counts.shape[1]
        whole = [round(count) for count in host[:num_counts]]
        assert all(count < EXACT_LIMIT for count in whole), "a logging window must count less than 2^53"
        rows = [whole[start : start + width] for start in range(0, num_counts, width)]
        means = [total / data.size for total in host[num_counts:]]
        split = self._counts.shape[1]
        return (
            [row[:split] for row in rows],
            dict(zip(scalars, means, strict=True)),
            [row[split:] for row in rows],
        )


def _means(totals: Sequence[int], tokens: Sequence[int], units: int = 1) -> list[float]:
    """Each layer's total, counted in 1 / `units`, over its tokens; NaN where it had none."""
    pairs = zip(totals, tokens, strict=True)
    return [total / units / seen if seen else math.nan for total, seen in pairs]
