"""Finds experts that get next to no tokens, or next to no gradient: capacity that is paid for and does nothing."""

from collections.abc import Iterable, Mapping
from statistics import median

from moe_train.monitor.balance import DEAD_SHARE
from moe_train.monitor.detectors.detector import Detector, Place, Sight, below
from moe_train.monitor.detectors.window import Window

GRADIENT_SHARE = 1e-3
"""An expert with a smaller part of its layer's median gradient learns nothing."""


class DeadExperts(Detector):
    """Looks at each expert's part of the assignments, and of the gradient where it is measured."""

    name = "dead_experts"

    @property
    def applies(self) -> bool:
        return self.expected.uses_all_experts

    def look(self, window: Window) -> Mapping[Place, Sight]:
        sights: dict[Place, Sight] = {}
        for layer in window.layers:
            shares = window.shares(layer)
            gradients = _gradients(window, layer)
            for expert, share in enumerate(shares):
                sight = below(share, DEAD_SHARE, margin=2.0)
                if not sight.is_ill and gradients:
                    of_median = gradients[expert] / median(gradients) if median(gradients) else 1.0
                    learns = below(of_median, GRADIENT_SHARE, margin=10.0)
                    sight = learns if learns.is_ill or not learns.is_well else sight
                sights[layer, expert] = sight
        return sights

    def needs(self) -> Iterable[str]:
        return ("load",)


def _gradients(window: Window, layer: int) -> list[float]:
    """Returns each expert's gradient norm in the last row of the window; none if it lacks one."""
    by_layer = window.row["moe"].get("expert_gradient_norm") or []
    values = by_layer[layer] if layer < len(by_layer) else []
    return [] if None in values else list(values)
