"""The protocol of a guard, which judges every update of a run; docs/adding-a-guard.md shows one.

Guards run on every rank, and all ranks must come to the same verdict. So a guard sees only what all ranks know, keeps
its memory in `state_dict`, draws no random numbers and reads no clock.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from moe_train.guards.actions import Action
from moe_train.monitor.window import LoadSummary


@dataclass(frozen=True)
class Update:
    """What all ranks know of an update: of a StepResult, what is not one rank's share."""

    step: int
    """Updates made so far, this one included."""
    lr: float
    grad_norm: float
    """Global norm before clipping."""
    mean_loss: float
    """The task loss of the global batch."""
    is_skipped: bool
    """A gradient was not finite, so parameters are as before."""


class Guard(Protocol):
    """Built as `Guard(config)` from its dataclass in the recipe."""

    def judge(self, update: Update, loads: LoadSummary | None) -> Iterable[Action]:
        """Takes an update in and returns what should be done now.

        `loads` is there at updates with a training row; its `scalars` have the row's losses.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Returns what must be known after a resume, JSON-ready."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from where `state` was taken."""
        ...
