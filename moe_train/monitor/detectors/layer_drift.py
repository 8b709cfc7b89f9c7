"""Notices figures of a layer that move one way and will cross a limit before the run ends."""

from collections.abc import Iterable, Mapping
from typing import Any

from moe_train.monitor.alarm import Case
from moe_train.monitor.detectors.advice import more_balance
from moe_train.monitor.detectors.detector import Detector, Place, Sight, of_layer
from moe_train.monitor.detectors.window import Window

WINDOWS = 10
"""A trend is of this many windows."""
SAME_WAY = 0.9
"""Part of the pairs of windows in which the later one is nearer to the limit: Kendall's tau of 0.8."""


class LayerDrift(Detector):
    """Follows effective experts towards half of all, and the drop rate towards a half."""

    name = "layer_drift"
    windows = 2

    def __init__(self, recipe: Any) -> None:
        super().__init__(recipe)
        self._paths: dict[str, list[tuple[int, float]]] = {}

    @property
    def applies(self) -> bool:
        return self.expected.uses_all_experts

    def look(self, window: Window) -> Mapping[Place, Sight]:
        sights = {}
        for layer in window.layers:
            load = window.loads[layer]
            unused = 1 - window.effective_experts(layer) / len(load)
            dropped = window.figure("drop_rate", layer)
            seen = [self._sight("unused", layer, window.step, unused, 0.5)]
            if dropped is not None and not self.expected.drops_by_design:
                seen.append(self._sight("dropped", layer, window.step, dropped, 0.5))
            sights[of_layer(layer)] = max(seen, key=lambda sight: sight.is_ill)
        return sights

    @staticmethod
    def describe(case: Case) -> str:
        value, limit = case.alarm.value, case.alarm.limit
        return f"unused experts or drops grow from window to window ({value:.2f} now, limit {limit:.2f})"

    @staticmethod
    def advice(case: Case) -> Iterable[str]:
        return more_balance(case)

    def needs(self) -> Iterable[str]:
        return ("load",)

    def clear(self) -> None:
        self._paths.clear()

    def state_dict(self) -> dict[str, Any]:
        return {"paths": {name: [list(point) for point in path] for name, path in self._paths.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._paths = {name: [(step, value) for step, value in path] for name, path in state["paths"].items()}

    def _sight(self, figure: str, layer: int, step: int, value: float, limit: float) -> Sight:
        path = [*self._paths.get(f"{figure} {layer}", []), (step, value)][-WINDOWS:]
        self._paths[f"{figure} {layer}"] = path
        crosses = _crosses(path, limit, self.recipe.steps)
        return Sight(value, limit, crosses, not crosses, "notice")


def _crosses(path: list[tuple[int, float]], limit: float, last_step: int) -> bool:
    """Returns whether a figure rises steadily and will be at `limit` by `last_step`, at the pace of its windows."""
    (first, low), (step, value) = path[0], path[-1]
    if len(path) < WINDOWS or not low < value < limit:
        return False
    if value + (value - low) / (step - first) * (last_step - step) <= limit:
        return False
    pairs = [(a, b) for place, (_, a) in enumerate(path) for _, b in path[place + 1 :]]
    return sum(b > a for a, b in pairs) >= SAME_WAY * len(pairs)
