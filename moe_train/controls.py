"""Scales the learning rate and the auxiliary losses, which is what a guard may change during a run.

A training step reads them in one place (`moe_train/step/`). Controls that nothing has scaled have the factor 1, which
leaves every number bit-equal.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moe_train.results import StepResult

LEARNING_RATE = "lr"


def of_loss(name: str) -> str:
    """Returns the control of an auxiliary loss's coefficient."""
    return f"losses.{name}"


def control_names(result: StepResult) -> list[str]:
    """Returns the controls of the run that made this update; a loss that is only observed has none."""
    factors = [layer.coefficients for layers in result.stats for layer in layers]
    losses = {name for of_layer in factors for name, coefficient in of_layer.items() if coefficient}
    return [LEARNING_RATE, *map(of_loss, sorted(losses))]


@dataclass(frozen=True)
class Controls:
    """The factor of each control that was scaled, and the last update that has it (None: all that follow)."""

    factors: Mapping[str, tuple[float, int | None]] = field(default_factory=dict)

    def factor(self, control: str, step: int) -> float:
        """Returns the factor of `control` in the update that follows `step` updates."""
        factor, until_step = self.factors.get(control, (1.0, None))
        return factor if until_step is None or step < until_step else 1.0

    def scaled(self, control: str, factor: float, until_step: int | None) -> "Controls":
        """Returns these controls with another factor for one of them."""
        return Controls({**self.factors, control: (factor, until_step)})

    def state_dict(self) -> dict[str, Any]:
        """Returns the factors, JSON-ready."""
        return {control: list(scale) for control, scale in self.factors.items()}

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> "Controls":
        """Returns the controls that `state` was taken of."""
        return Controls({control: (factor, until_step) for control, (factor, until_step) in state.items()})


UNCHANGED = Controls()
