"""Finds routers that should learn and that next to no gradient reaches: their loads may be perfectly even."""

from collections.abc import Iterable, Mapping

from moe_train.monitor.detectors.detector import Detector, Place, Sight, below, of_layer
from moe_train.monitor.detectors.window import Window

LEAST_SHARE = 1e-6
"""Part of the whole model's gradient norm that must reach a router."""


class UnlearningRouter(Detector):
    """Compares the gradient of each router with that of the model."""

    name = "unlearning_router"

    @property
    def applies(self) -> bool:
        return self.expected.learns

    def look(self, window: Window) -> Mapping[Place, Sight]:
        whole = window.row.get("grad_norm")
        if not whole:
            return {}
        found = {layer: window.figure("router_gradient_norm", layer) for layer in window.layers}
        return {
            of_layer(layer): below(norm / whole, LEAST_SHARE, margin=10.0)
            for layer, norm in found.items()
            if norm is not None
        }

    def needs(self) -> Iterable[str]:
        return ("router_gradient_norm",)
