"""Finds experts that get next to no tokens, or next to no gradient: capacity that is paid for and does nothing."""

import math
from collections.abc import Iterable, Mapping
from statistics import median

from moe_train.monitor.alarm import Case
from moe_train.monitor.balance import DEAD_SHARE
from moe_train.monitor.detectors.advice import more_balance, no_balance
from moe_train.monitor.detectors.detector import WELL, Detector, Place, Sight, below
from moe_train.monitor.detectors.window import Window

MARGIN = 2.0
"""Times this share an expert is well again."""
GRADIENT_SHARE, GRADIENT_MARGIN = 1e-3, 10.0
"""An expert with a smaller part of its layer's median gradient learns nothing."""


class DeadExperts(Detector):
    """Looks at each expert's part of the assignments, and of the gradient where it is measured."""

    name = "dead_experts"
    omits_well = True

    @property
    def applies(self) -> bool:
        return self.expected.uses_all_experts

    def look(self, window: Window) -> Mapping[Place, Sight]:
        sights: dict[Place, Sight] = {}
        for layer in window.layers:
            shares, gradients = window.shares(layer), _of_median(window, layer)
            if min(shares, default=math.inf) < MARGIN * DEAD_SHARE:
                sights |= {
                    (layer, expert): below(share, DEAD_SHARE, MARGIN) for expert, share in enumerate(shares)
                }
            if min(gradients, default=math.inf) >= GRADIENT_MARGIN * GRADIENT_SHARE:
                continue
            for expert, part in enumerate(gradients):
                learns = below(part, GRADIENT_SHARE, GRADIENT_MARGIN)
                known = sights.get((layer, expert), WELL)
                if not learns.is_well and not known.is_ill:
                    sights[layer, expert] = learns
        return sights

    @staticmethod
    def describe(case: Case) -> str:
        has = "has" if len(case.alarm.experts) == 1 else "have"
        return f"{has} less than a tenth of the fair share of the tokens, or next to no gradient"

    @staticmethod
    def causes(case: Case) -> Iterable[str]:
        return no_balance(case)

    @staticmethod
    def advice(case: Case) -> Iterable[str]:
        return more_balance(case)

    def needs(self) -> Iterable[str]:
        return ("load",)


def _of_median(window: Window, layer: int) -> list[float]:
    """Returns each expert's gradient norm in the last row, as a part of the layer's median; none if it lacks one."""
    by_layer = window.row["moe"].get("expert_gradient_norm") or []
    norms = by_layer[layer] if layer < len(by_layer) else []
    middle = 0.0 if None in norms or not norms else median(norms)
    return [norm / middle for norm in norms] if middle else []
