"""Finds routers whose logits run away, or that have become certain of everything."""

from collections.abc import Iterable, Mapping
from typing import Any

from moe_train.monitor.alarm import Case
from moe_train.monitor.detectors.advice import calmer_router
from moe_train.monitor.detectors.detector import Detector, Place, Settled, Sight, above, below, of_layer
from moe_train.monitor.detectors.window import Window

GROWTH = 10.0
"""How many times its settled value a size of the logits may reach."""
CERTAINTY = 0.1
"""To which part of its settled value the entropy may fall."""
SIZES = ("router_logit_rms", "router_z")


class RouterCollapse(Detector):
    """Compares the size of the logits and their entropy with what they were when the router had settled."""

    name = "router_collapse"

    def __init__(self, recipe: Any) -> None:
        super().__init__(recipe)
        self._settled = {name: Settled() for name in (*SIZES, "router_entropy")}

    @property
    def applies(self) -> bool:
        return self.expected.learns

    def look(self, window: Window) -> Mapping[Place, Sight]:
        sights = {}
        for layer in window.layers:
            seen = [sight for name in self._settled if (sight := self._sight(name, window, layer))]
            if seen:
                sights[of_layer(layer)] = min(seen, key=lambda sight: (not sight.is_ill, sight.is_well))
        return sights

    @staticmethod
    def describe(case: Case) -> str:
        value, limit = case.alarm.value, case.alarm.limit
        return (
            f"the router's logits or their entropy have left what was usual ({value:.3g}, limit {limit:.3g})"
        )

    @staticmethod
    def advice(case: Case) -> Iterable[str]:
        return calmer_router(case)

    def needs(self) -> Iterable[str]:
        return self._settled

    def clear(self) -> None:
        for settled in self._settled.values():
            settled.clear()

    def state_dict(self) -> dict[str, Any]:
        return {name: settled.state() for name, settled in self._settled.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, settled in self._settled.items():
            settled.load(state[name])

    def _sight(self, name: str, window: Window, layer: int) -> Sight | None:
        value = window.figure(name, layer)
        usual = None if value is None else self._settled[name].add(layer, value)
        if value is None or not usual:
            return None
        return above(value, GROWTH * usual) if name in SIZES else below(value, CERTAINTY * usual, margin=2.0)
