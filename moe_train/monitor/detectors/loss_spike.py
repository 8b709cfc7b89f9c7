"""Finds losses far above those before: of the worst update between two rows, where rows have it."""

from collections import deque
from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

from moe_train.monitor.alarm import Case
from moe_train.monitor.detectors.advice import lower_rate
from moe_train.monitor.detectors.detector import RUN, Detector, Place, Sight
from moe_train.monitor.detectors.window import Window

ROWS = 12
"""Rows that a loss is compared with."""
FEWEST = 6
DEVIATIONS = 8.0
"""Median absolute deviations above the median; 6 of them are 4 standard deviations of a normal distribution."""
LEAST_RISE = 0.1
"""Nor is a loss a spike that is less than this part of the median above it."""


class LossSpike(Detector):
    """Compares each row's highest loss with the losses of the rows before."""

    name = "loss_spike"
    sees = "rows"
    windows = 1
    steps = 0

    def __init__(self, recipe: Any) -> None:
        super().__init__(recipe)
        self._losses: deque[float] = deque(maxlen=ROWS)

    def look(self, window: Window) -> Mapping[Place, Sight]:
        usual, highest = window.row.get("loss"), window.row.get("loss_max")
        if usual is None:
            return {}
        loss = usual if highest is None else highest
        if len(self._losses) < FEWEST:
            self._losses.append(usual)
            return {}
        middle = median(self._losses)
        deviation = median(abs(each - middle) for each in self._losses)
        limit = middle + max(DEVIATIONS * deviation, LEAST_RISE * abs(middle))
        sight = Sight(loss, limit, loss > limit, loss <= (middle + limit) / 2)
        if not sight.is_ill:
            self._losses.append(usual)
        return {RUN: sight}

    @staticmethod
    def describe(case: Case) -> str:
        return (
            f"the loss reached {case.alarm.value:.4g}, where {case.alarm.limit:.4g} is the most that is usual"
        )

    @staticmethod
    def advice(case: Case) -> Iterable[str]:
        yield lower_rate(case)
        if not case.recipe.stability.rollback:
            yield "set stability.rollback=true, which goes back to an earlier checkpoint and passes the batches over"

    def state_dict(self) -> dict[str, Any]:
        return {"losses": list(self._losses)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._losses = deque(state["losses"], maxlen=ROWS)
