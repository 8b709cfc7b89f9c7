"""Detects loss spikes by comparing a loss with previous ones, robustly against single bad batches.

A loss is a spike if it exceeds the median of the last losses by more than a number of median absolute deviations (for
a normal distribution, 6 of them are 4 standard deviations). Spikes do not enter the losses they are compared with.
"""

import math
import statistics
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from moe_train.config.kinds.guard.spike import SpikeGuardConfig
from moe_train.controls import LEARNING_RATE
from moe_train.guards.actions import Action, RollBack, Scale, Stop, Warn
from moe_train.guards.guard import Update
from moe_train.monitor.window import LoadSummary


class SpikeWatch:
    """Watches every update's loss of the global batch; the same losses give the same answers on every rank."""

    def __init__(self, window: int, threshold: float) -> None:
        self.threshold = threshold
        self.in_row = 0
        """Number of spikes since the last normal loss."""
        self._losses: deque[float] = deque(maxlen=window)

    @property
    def limit(self) -> float:
        """Returns the highest loss that is not a spike; infinite until the window is full."""
        if len(self._losses) < (self._losses.maxlen or 0):
            return math.inf
        median = statistics.median(self._losses)
        deviation = statistics.median(abs(loss - median) for loss in self._losses)
        return median + self.threshold * deviation

    def add(self, loss: float) -> None:
        """Judges a loss, which must be finite, and remembers it unless it is a spike."""
        if loss > self.limit:
            self.in_row += 1
            return
        self.in_row = 0
        self._losses.append(loss)

    def state_dict(self) -> dict[str, Any]:
        """Returns the JSON-ready state."""
        return {"losses": list(self._losses), "in_row": self.in_row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state`; if it has more losses than the window, the last ones count."""
        self._losses.clear()
        self._losses.extend(state["losses"])
        self.in_row = state["in_row"]


class SpikeGuard:
    """Responds to `patience` spikes in a row; skipped updates have no part in it."""

    def __init__(self, config: SpikeGuardConfig) -> None:
        self.config = config
        self._watch = SpikeWatch(config.window, config.threshold)

    def judge(self, update: Update, loads: LoadSummary | None) -> Iterable[Action]:
        """See Guard."""
        if update.is_skipped:
            return ()
        limit = self._watch.limit
        self._watch.add(update.mean_loss)
        in_row = self._watch.in_row
        if in_row < self.config.patience:
            return ()
        self._watch.in_row = 0
        reason = f"{in_row} losses in a row above {limit:.4f}, the last {update.mean_loss:.4f}"
        return (self._response(reason, update.step, in_row),)

    def state_dict(self) -> dict[str, Any]:
        """See Guard."""
        return self._watch.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See Guard."""
        self._watch.load_state_dict(state)

    def _response(self, reason: str, step: int, in_row: int) -> Action:
        config = self.config
        match config.response:
            case "warn":
                return Warn(reason)
            case "slow":
                return Scale(reason, LEARNING_RATE, config.lr_factor, step + config.slow_steps)
            case "roll_back":
                return RollBack(reason, step - in_row - config.margin, otherwise="spike")
            case "stop":
                return Stop(reason)
