"""Holds the options of `moe.router.kind=switch`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from moe_train.config.kinds.facts import Facts
from moe_train.config.kinds.router.router import BalanceLossConfig, BalanceOver
from moe_train.config.problem import Problem


@dataclass
class SwitchRouterConfig(BalanceLossConfig):
    """Configures Switch (2101.03961): one expert per token, weight = its probability."""

    kind: str = "switch"
    policy: Literal["argmax", "sampling"] = "argmax"  # in training; sampling: a draw from the softmax
    input_dropout: float = 0.0  # on the router's input, training only; mesh-tensorflow's policy takes 0.1
    reroutes: int = (
        0  # other experts that a token tries where its own is full; mesh-tensorflow: 3, off by default
    )
    jitter: float = 0.01  # mesh-tensorflow's
    balance_coefficient: float = 0.01  # alpha of eq. 4
    balance_over: BalanceOver = "batch"  # eq. 4-6: "a batch B with T tokens"

    def draws_in_training(self, num_experts: int) -> bool:
        draws = self.policy == "sampling" or self.input_dropout > 0 or self.jitter > 0
        return draws and num_experts > 1

    def check(self, recipe: Facts) -> Iterator[Problem]:
        if not 0 <= self.input_dropout < 1:
            yield Problem(
                "moe.router.input_dropout", self.input_dropout, "must be in [0, 1)", "use 0.1, or 0 for none"
            )
        yield from super().check(recipe)
        yield from self._check_reroutes(recipe)

    def _check_reroutes(self, recipe: Facts) -> Iterator[Problem]:
        key, value, experts = "moe.router.reroutes", self.reroutes, recipe.moe.num_experts
        if not 0 <= value < experts:
            yield Problem(
                key, value, f"must be at least 0 and below moe.num_experts={experts}", "use 3, or 0 for none"
            )
        elif value and self.policy == "sampling":
            yield Problem(
                key,
                value,
                "needs a next best expert, which moe.router.policy=sampling does not have",
                "use policy=argmax",
            )
        elif value and recipe.moe.capacity_factor is None and recipe.moe.eval_capacity_factor is None:
            yield Problem(
                key,
                value,
                "has no effect without capacity factors, as no expert is ever full",
                "set moe.capacity_factor, or leave it at 0",
            )

    def notes(self, recipe: Facts) -> Iterator[str]:
        if self.reroutes:
            yield (
                f"moe.router.reroutes={self.reroutes}: all first choices are served before any second one, so whether "
                "a token's next best expert has room depends on tokens after it; 0 keeps the model causal"
            )
