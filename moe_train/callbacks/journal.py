"""Writes the rows of one attempt: each gets its step and the number of the attempt."""

from collections.abc import Iterable
from typing import Any

from moe_train.callbacks.group import CallbackGroup


class Journal:
    """Hands rows to the callbacks of a run; on ranks without any, rows go nowhere."""

    def __init__(self, callbacks: CallbackGroup, attempt: int) -> None:
        self.callbacks, self.attempt = callbacks, attempt

    def row(self, step: int, **content: Any) -> None:
        """Writes a training or validation row."""
        self.callbacks.on_row({"step": step, "attempt": self.attempt, **content})

    def event(self, name: str, step: int, **details: Any) -> None:
        """Writes an event row."""
        self.callbacks.on_row({"event": name, "step": step, "attempt": self.attempt, **details})

    def commits(self, steps: Iterable[int]) -> None:
        """Writes an event for each checkpoint that was committed."""
        for step in steps:
            self.event("checkpoint", step)
