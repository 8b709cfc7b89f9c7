"""Finds numbers that are not finite: a loss, a gradient norm, a router's figures, updates that were skipped for one."""

from collections.abc import Iterable, Mapping
from typing import Any

from moe_train.monitor.alarm import Case
from moe_train.monitor.detectors.advice import calmer_router
from moe_train.monitor.detectors.detector import RUN, Detector, Place, Sight, of_layer
from moe_train.monitor.detectors.window import Window


class NotFinite(Detector):
    """Counts, in each row, what is not a finite number; a single one is critical."""

    name = "not_finite"
    sees = "rows"
    windows = 1
    steps = 0
    early = ("critical",)

    def __init__(self, recipe: Any) -> None:
        super().__init__(recipe)
        self._skipped = 0

    def look(self, window: Window) -> Mapping[Place, Sight]:
        row = window.row
        skipped = row.get("skipped_updates") or 0
        bad = sum(key in row and row[key] is None for key in ("loss", "grad_norm")) + max(
            skipped - self._skipped, 0
        )
        self._skipped = skipped
        sights = {RUN: _sight(bad)}
        for layer in window.layers:
            number = window.figure("router_not_finite", layer)
            if number is not None:
                sights[of_layer(layer)] = _sight(number)
        return sights

    @staticmethod
    def describe(case: Case) -> str:
        return "a loss, a gradient or a router's figure is not a finite number"

    @staticmethod
    def advice(case: Case) -> Iterable[str]:
        if not case.recipe.stability.skip_non_finite:
            yield "set stability.skip_non_finite=true, which skips such updates"
        yield from calmer_router(case)

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self._skipped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._skipped = state["skipped"]


def _sight(number: float) -> Sight:
    return Sight(number, 0, number > 0, number == 0, "critical")
