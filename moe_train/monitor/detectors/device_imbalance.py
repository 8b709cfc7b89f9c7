"""Finds layers whose busiest worker has so much more to do than the mean that all others wait for it."""

from collections.abc import Iterable, Mapping

from moe_train.monitor.alarm import Case
from moe_train.monitor.balance import device_load
from moe_train.monitor.detectors.advice import more_balance, no_balance
from moe_train.monitor.detectors.detector import Detector, Place, Sight, above, of_layer
from moe_train.monitor.detectors.window import Window

EXCESS = 1.3
"""Load of the busiest worker over the mean."""


class DeviceImbalance(Detector):
    """Looks at the loads of the workers that share out the experts."""

    name = "device_imbalance"

    @property
    def applies(self) -> bool:
        return self.recipe.parallel.expert > 1

    def look(self, window: Window) -> Mapping[Place, Sight]:
        sights = {}
        degree = self.recipe.parallel.expert
        for layer in window.layers:
            load = window.loads[layer]
            if len(load) >= degree and sum(load) > 0:
                busiest = max(device_load(load, degree))
                sights[of_layer(layer)] = above(busiest * degree / sum(load), EXCESS, margin=0.9)
        return sights

    @staticmethod
    def describe(case: Case) -> str:
        return (
            f"the busiest worker has {case.alarm.value:.2f} times the mean load, and all others wait for it"
        )

    @staticmethod
    def causes(case: Case) -> Iterable[str]:
        return no_balance(case)

    @staticmethod
    def advice(case: Case) -> Iterable[str]:
        yield f"lower parallel.expert={case.recipe.parallel.expert}, so that a worker holds more experts"
        yield from more_balance(case)

    def needs(self) -> Iterable[str]:
        return ("load",)
