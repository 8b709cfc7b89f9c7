"""Finds layers that drop so many tokens that what the experts learn is lost on them."""

from collections.abc import Iterable, Mapping

from moe_train.monitor.alarm import Case
from moe_train.monitor.detectors.advice import more_balance, no_balance
from moe_train.monitor.detectors.detector import Place, SettlingDetector, Sight, above, of_layer
from moe_train.monitor.detectors.window import Window

MOST = 0.5
"""No layer may drop more."""
RISE = 3.0
"""Nor this many times what it dropped when it had settled, where that is above LEAST."""
LEAST = 0.2


class DropStorm(SettlingDetector):
    """Looks at the share of the assignments that found no room in their expert."""

    name = "drop_storm"

    @property
    def applies(self) -> bool:
        return self.recipe.moe.capacity_factor is not None and not self.expected.drops_by_design

    def look(self, window: Window) -> Mapping[Place, Sight]:
        sights = {}
        for layer in window.layers:
            rate = window.figure("drop_rate", layer)
            if rate is not None:
                usual = self._settled.add(layer, rate)
                limit = MOST if usual is None else min(MOST, max(LEAST, RISE * usual))
                sights[of_layer(layer)] = above(rate, limit)
        return sights

    @staticmethod
    def describe(case: Case) -> str:
        return f"{case.alarm.value:.0%} of the assignments are dropped"

    @staticmethod
    def causes(case: Case) -> Iterable[str]:
        yield f"the loads exceed moe.capacity_factor={case.recipe.moe.capacity_factor:g} times the fair share"
        yield from no_balance(case)

    @staticmethod
    def advice(case: Case) -> Iterable[str]:
        factor = case.recipe.moe.capacity_factor
        yield f"raise moe.capacity_factor={factor:g}, or set it to null, which drops nothing"
        yield from more_balance(case)

    def needs(self) -> Iterable[str]:
        return ("drop_rate",)
