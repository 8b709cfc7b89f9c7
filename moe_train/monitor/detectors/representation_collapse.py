"""Finds layers with two experts that are, or become, the same."""

from collections.abc import Iterable, Mapping

from moe_train.monitor.alarm import Case
from moe_train.monitor.detectors.detector import Detector, Place, Sight, above, of_layer
from moe_train.monitor.detectors.window import Window

SAME = 0.98
"""Cosine of two experts' weights, or of their outputs, above which they are one."""


class RepresentationCollapse(Detector):
    """Looks at the largest cosine between two experts' weights, in the rows that have one."""

    name = "representation_collapse"
    sees = "rows"
    windows = 2

    def look(self, window: Window) -> Mapping[Place, Sight]:
        found = {layer: window.figure("expert_similarity", layer) for layer in window.layers}
        return {
            of_layer(layer): above(value, SAME, 0.99) for layer, value in found.items() if value is not None
        }

    @staticmethod
    def describe(case: Case) -> str:
        return f"two experts have become the same (cosine {case.alarm.value:.3f} of their weights)"

    @staticmethod
    def advice(case: Case) -> Iterable[str]:
        yield "give the experts different first values, or different tokens: more noise in the router"

    def needs(self) -> Iterable[str]:
        return ("expert_similarity",)
