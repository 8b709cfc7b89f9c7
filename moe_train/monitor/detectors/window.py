"""Collects the training rows of consecutive steps into windows with enough assignments to judge the experts by.

n assignments to E experts that are drawn evenly leave an expert below a tenth of its fair share, n / E, with a
probability of 1.8e-2 at n / E = 4, and of less than 1e-10 at 32. So a window has FAIR_SHARE of them an expert in each
layer. L MoE layers, E experts of a layer.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from moe_train.monitor.balance import FAIR_SHARE, effective_experts
from moe_train.monitor.rows import Row


@dataclass(frozen=True)
class Window:
    """Holds what training rows of consecutive steps say together."""

    first_step: int
    """The first update of it."""
    step: int
    """The last one, which has a row."""
    row: Row
    """The last training row."""
    loads: Sequence[Sequence[int]]
    """[L][E]: assignments."""
    means: Mapping[str, Sequence[float | None]]
    """[L] of each figure: the mean over rows that have it; None where no row has."""
    _used: dict[int, float] = field(default_factory=dict, compare=False, repr=False)

    @property
    def layers(self) -> range:
        """Returns the numbers of the MoE layers."""
        return range(len(self.loads))

    def figure(self, name: str, layer: int) -> float | None:
        """Returns the mean of a layer's figure over the window; None if it was not measured."""
        values = self.means.get(name)
        return values[layer] if values and layer < len(values) else None

    def effective_experts(self, layer: int) -> float:
        """Returns the number of evenly used experts that would be as diverse: see balance.py."""
        if layer not in self._used:
            self._used[layer] = effective_experts(self.loads[layer])
        return self._used[layer]

    def shares(self, layer: int) -> list[float]:
        """Returns each expert's part of the layer's assignments, as a multiple of the fair share."""
        load = self.loads[layer]
        total = sum(load)
        return [count * len(load) / total for count in load] if total else []


class Windows:
    """Takes training rows in, and returns a window whenever there are enough assignments for one."""

    def __init__(self) -> None:
        self._first: int | None = None
        self._loads: list[list[int]] = []
        self._sums: dict[str, list[list[float]]] = {}

    def add(self, row: Row, first_step: int) -> Window | None:
        """Takes a row in that covers the updates from `first_step` on."""
        moe = row.get("moe") or {}
        loads = moe.get("load") or []
        if [len(load) for load in loads] != [len(load) for load in self._loads]:
            self._first, self._loads, self._sums = None, [[0] * len(load) for load in loads], {}
        if self._first is None:
            self._first = first_step
        for mine, load in zip(self._loads, loads, strict=True):
            mine[:] = [count + (more or 0) for count, more in zip(mine, load, strict=True)]
        for name, values in _figures(moe):
            self._add(name, values)
        if any(sum(load) < FAIR_SHARE * len(load) for load in self._loads):
            return None
        window = Window(self._first, row["step"], row, self._loads, self._means())
        self.clear()
        return window

    def clear(self) -> None:
        """Begins a new window."""
        self._first, self._sums = None, {}
        self._loads = [[0] * len(load) for load in self._loads]

    def state_dict(self) -> dict[str, Any]:
        """Returns what must be known after a resume, JSON-ready."""
        return {"first": self._first, "loads": self._loads, "sums": self._sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from where `state` was taken."""
        self._first, self._loads = state["first"], [list(load) for load in state["loads"]]
        self._sums = {name: [list(pair) for pair in pairs] for name, pairs in state["sums"].items()}

    def _add(self, name: str, values: Sequence[float | None]) -> None:
        """Adds a figure with a number for each layer."""
        sums = self._sums.setdefault(name, [[0.0, 0] for _ in values])
        if len(sums) == len(values):
            for pair, value in zip(sums, values, strict=True):
                if value is not None:
                    pair[0] += value
                    pair[1] += 1

    def _means(self) -> dict[str, list[float | None]]:
        return {
            name: [total / number if number else None for total, number in pairs]
            for name, pairs in self._sums.items()
        }


def of_one_row(row: Row, first_step: int) -> Window:
    """Returns a row as a window of its own."""
    moe = row.get("moe") or {}
    return Window(first_step, row["step"], row, moe.get("load") or [], dict(_figures(moe)))


def _figures(moe: Mapping[str, Any]) -> Iterator[tuple[str, Sequence[float | None]]]:
    """Yields the figures that have a number or null for each layer."""
    for name, values in moe.items():
        if isinstance(values, Sequence) and all(value is None or _is_number(value) for value in values):
            yield name, values


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
