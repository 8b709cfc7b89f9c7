"""Finds layers whose favourites change sides from one window to the next: a correction that is too strong."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from moe_train.monitor.alarm import Case
from moe_train.monitor.balance import chance_cv, cv
from moe_train.monitor.detectors.advice import lower_rate
from moe_train.monitor.detectors.detector import Detector, Place, Sight, of_layer
from moe_train.monitor.detectors.window import Window

REVERSAL = -0.2
"""Correlation of the experts' shares with those of the row before, below which the favourites have reversed."""
ABOVE_CHANCE = 3.0
"""How many times the CV must exceed what chance makes of as many assignments."""
LEAST_CV = 0.3
EVEN = Sight(0.0, REVERSAL, is_ill=False, is_well=True)
"""What is seen of a layer without favourites."""


class LoadOscillation(Detector):
    """Looks at consecutive rows: a steady favourite has a correlation near 1, chance one near 0."""

    name = "load_oscillation"
    sees = "rows"
    windows = 5

    def __init__(self, recipe: Any) -> None:
        super().__init__(recipe)
        self._before: dict[int, list[int]] = {}

    @property
    def applies(self) -> bool:
        return self.expected.uses_all_experts

    def look(self, window: Window) -> Mapping[Place, Sight]:
        sights = {}
        for layer in window.layers:
            load = list(window.loads[layer])
            if len(load) < 3 or not sum(load):
                continue
            before, self._before[layer] = self._before.get(layer), load
            if before is None or len(before) != len(load):
                continue
            if cv(load) > max(LEAST_CV, ABOVE_CHANCE * chance_cv(load)):
                found = _correlation(before, load)
                sights[of_layer(layer)] = Sight(found, REVERSAL, found < REVERSAL, found > 0)
            else:
                sights[of_layer(layer)] = EVEN
        return sights

    @staticmethod
    def describe(case: Case) -> str:
        return f"the experts that were preferred are avoided in the next row (correlation {case.alarm.value:.2f})"

    @staticmethod
    def causes(case: Case) -> Iterable[str]:
        if rate := getattr(case.recipe.moe.router, "bias_rate", 0.0):
            yield f"moe.router.bias_rate={rate:g} corrects the loads by more than they are off"
        yield f"optim.lr={case.recipe.optim.lr:g} may be too high for the router"

    @staticmethod
    def advice(case: Case) -> Iterable[str]:
        if rate := getattr(case.recipe.moe.router, "bias_rate", 0.0):
            yield f"lower moe.router.bias_rate={rate:g}, to {rate / 10:g} for one"
        for name, value in case.balance.items():
            if value:
                yield f"lower moe.router.{name}={value:g}"
        yield lower_rate(case)

    def needs(self) -> Iterable[str]:
        return ("load",)

    def clear(self) -> None:
        self._before.clear()

    def state_dict(self) -> dict[str, Any]:
        return {"before": sorted(self._before.items())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._before = {layer: list(load) for layer, load in state["before"]}


def _correlation(one: Sequence[int], other: Sequence[int]) -> float:
    """Returns the correlation of two lists; 0 where one of them is even."""
    ones, others = ([count - sum(load) / len(load) for count in load] for load in (one, other))
    norm = math.sqrt(sum(x * x for x in ones) * sum(y * y for y in others))
    return sum(x * y for x, y in zip(ones, others, strict=True)) / norm if norm else 0.0
