"""Judges updates whose gradients are not finite, which the training step skips: GLaM (2112.06905), sec. 5.1."""

from collections.abc import Iterable, Mapping
from typing import Any

from moe_train.guards.actions import Action, RollBack
from moe_train.guards.guard import Update
from moe_train.monitor.window import LoadSummary


class NonFiniteGuard:
    """Rolls back after `limit` skipped updates in a row: weights that became NaN do not heal."""

    def __init__(self, limit: int, margin: int) -> None:
        """`margin`: updates that the checkpoint must be older than the first skipped one."""
        self.limit, self.margin = limit, margin
        self._in_row = 0

    def judge(self, update: Update, loads: LoadSummary | None) -> Iterable[Action]:
        """See Guard."""
        self._in_row = self._in_row + 1 if update.is_skipped else 0
        if self._in_row < self.limit:
            return ()
        newest = update.step - self._in_row - self.margin
        return (RollBack(f"{self._in_row} updates in a row were not finite", newest),)

    def state_dict(self) -> dict[str, Any]:
        """See Guard."""
        return {"in_row": self._in_row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See Guard."""
        self._in_row = state["in_row"]
