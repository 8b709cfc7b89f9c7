"""Holds the options of the guard `spike`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from moe_train.config.kinds.facts import Facts
from moe_train.config.kinds.guard.guard import GuardConfig
from moe_train.config.problem import Problem


@dataclass
class SpikeGuardConfig(GuardConfig):
    """Watches for spikes of the loss, by the rule of `stability`."""

    kind: str = "spike"
    window: int = 200  # losses, one per update, whose median and spread define a spike
    threshold: float = 6.0  # a loss this many median absolute deviations above the median is a spike
    patience: int = 3  # spikes in a row that call for the response
    response: Literal["warn", "slow", "roll_back", "stop"] = "warn"
    lr_factor: float = 0.5  # slow: factor of the learning rate
    slow_steps: int = 100  # slow: updates with that factor
    margin: int = 10  # roll_back: updates that the checkpoint must be older than the first spike

    def check(self, recipe: Facts) -> Iterator[Problem]:
        for key, lowest in (("window", 2), ("patience", 1), ("slow_steps", 1), ("margin", 0)):
            value = getattr(self, key)
            if value < lowest:
                yield Problem(
                    key,
                    value,
                    f"must be at least {lowest}",
                    f"its default is {getattr(SpikeGuardConfig, key)}",
                )
        if self.threshold <= 0:
            yield Problem("threshold", self.threshold, "must be > 0", "use 6")
        if not 0 <= self.lr_factor < 1:
            yield Problem("lr_factor", self.lr_factor, "must be in [0, 1)", "use 0.5")
        if self.response == "roll_back" and not recipe.stability.rollback:
            yield Problem(
                "response",
                self.response,
                "needs stability.rollback=true, which allows rollbacks",
                "set it, or use response=warn",
            )
