"""Finds layers whose favourites change sides from one window to the next: a correction that is too strong."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from moe_train.monitor.balance import chance_cv, cv
from moe_train.monitor.detectors.detector import Detector, Place, Sight, of_layer
from moe_train.monitor.detectors.window import Window

REVERSAL = -0.2
"""Correlation of the experts' shares with those of the row before, below which the favourites have reversed."""
ABOVE_CHANCE = 3.0
"""How many times the CV must exceed what chance makes of as many assignments."""
LEAST_CV = 0.3


class LoadOscillation(Detector):
    """Looks at consecutive rows: a steady favourite has a correlation near 1, chance one near 0."""

    name = "load_oscillation"
    sees = "rows"
    windows = 5

    def __init__(self, recipe: Any) -> None:
        super().__init__(recipe)
        self._before: dict[int, list[float]] = {}

    @property
    def applies(self) -> bool:
        return self.expected.uses_all_experts

    def look(self, window: Window) -> Mapping[Place, Sight]:
        sights = {}
        for layer in window.layers:
            load, shares = window.loads[layer], window.shares(layer)
            if len(shares) < 3:
                continue
            before, self._before[layer] = self._before.get(layer), shares
            if before is None or len(before) != len(shares):
                continue
            correlation = _correlation(before, shares)
            is_strong = cv(load) > max(LEAST_CV, ABOVE_CHANCE * chance_cv(load))
            sights[of_layer(layer)] = Sight(
                correlation, REVERSAL, is_strong and correlation < REVERSAL, not is_strong or correlation > 0
            )
        return sights

    def needs(self) -> Iterable[str]:
        return ("load",)

    def clear(self) -> None:
        self._before.clear()

    def state_dict(self) -> dict[str, Any]:
        return {"before": sorted(self._before.items())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._before = {layer: list(shares) for layer, shares in state["before"]}


def _correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Returns the correlation of two lists with a mean of 1 each; 0 where one of them is even."""
    ones, others = [share - 1 for share in one], [share - 1 for share in other]
    norm = math.sqrt(sum(x * x for x in ones) * sum(y * y for y in others))
    return sum(x * y for x, y in zip(ones, others, strict=True)) / norm if norm else 0.0
