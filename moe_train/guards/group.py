"""The guards of a run: those that `stability` sets up, then those that the recipe lists under `guards`."""

from collections.abc import Mapping
from typing import Any

from moe_train.config.kinds.guard.spike import SpikeGuardConfig
from moe_train.config.registry import build
from moe_train.config.schema import Recipe
from moe_train.guards.actions import Action
from moe_train.guards.guard import Guard, Update
from moe_train.guards.non_finite import NonFiniteGuard
from moe_train.guards.spike import SpikeGuard
from moe_train.monitor.window import LoadSummary

NON_FINITE, SPIKE = "stability.non_finite", "stability.spike"
"""The guards of the section `stability`."""


class GuardGroup:
    """Asks each guard, by name, in the order of the recipe."""

    def __init__(self, guards: Mapping[str, Guard]) -> None:
        self._guards = dict(guards)

    def judge(self, update: Update, loads: LoadSummary | None) -> list[tuple[str, Action]]:
        """Returns what the guards ask for, each action with its guard's name."""
        return [
            (name, action) for name, guard in self._guards.items() for action in guard.judge(update, loads)
        ]

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of each guard by name."""
        return {name: guard.state_dict() for name, guard in self._guards.items()}

    def load_state_dict(self, states: Mapping[str, Any]) -> None:
        """Gives each guard its own state back; one that is new to the run keeps what it has."""
        for name, guard in self._guards.items():
            if name in states:
                guard.load_state_dict(states[name])


def guards_of(recipe: Recipe) -> GuardGroup:
    """Builds the guards of a recipe. The second one of a kind in the list is named `KIND-2`, and so on."""
    stability = recipe.stability
    guards: dict[str, Guard] = {NON_FINITE: NonFiniteGuard(stability.skip_limit, stability.rollback_margin)}
    if stability.rollback:
        guards[SPIKE] = SpikeGuard(
            SpikeGuardConfig(
                window=stability.spike_window,
                threshold=stability.spike_threshold,
                patience=stability.spike_patience,
                response="roll_back",
                margin=stability.rollback_margin,
            )
        )
    kinds = [config.kind for config in recipe.guards]
    for place, config in enumerate(recipe.guards):
        nth = kinds[: place + 1].count(config.kind)
        guards[config.kind if nth == 1 else f"{config.kind}-{nth}"] = build("guards", config)
    return GuardGroup(guards)
