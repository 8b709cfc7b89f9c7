"""Keeps the task losses of the updates since the last training row, so that a row shows more than the last one's."""

import math
from collections.abc import Mapping
from typing import Any


class LossWindow:
    """Takes the loss of each update, of the global batch: the same number on every rank."""

    def __init__(self) -> None:
        self._losses: list[float] = []

    def add(self, loss: float) -> None:
        """Takes in an update's loss; one that is not finite has no part in the figures."""
        if math.isfinite(loss):
            self._losses.append(loss)

    def close(self) -> dict[str, float]:
        """Returns the keys of a training row, NaN where no loss was finite, and begins a new window."""
        losses, self._losses = self._losses, []
        return {
            "loss_mean": math.fsum(losses) / len(losses) if losses else math.nan,
            "loss_max": max(losses, default=math.nan),
        }

    def state_dict(self) -> dict[str, Any]:
        """Returns what must be known after a resume, JSON-ready."""
        return {"losses": self._losses}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from where `state` was taken."""
        self._losses = list(state["losses"])
