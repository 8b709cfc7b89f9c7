"""Holds the options of `moe.router.kind=reinforce`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from moe_train.config.kinds.facts import Facts
from moe_train.config.kinds.router.router import (
    BalanceLossConfig,
    BalanceOver,
)
from moe_train.config.problem import Problem


@dataclass
class ReinforceRouterConfig(BalanceLossConfig):
    """Configures RL-R (2202.01169): a policy draws each token's expert and learns from its loss by REINFORCE."""

    signed_coefficients: ClassVar[tuple[str, ...]] = ("entropy_coefficient",)

    kind: str = "reinforce"
    policy_coefficient: float = 0.01  # of log p(expert) * (loss - baseline)
    value_coefficient: float = 0.01  # of the Huber loss of the baseline, which predicts a token's loss
    entropy_coefficient: float = 5e-4  # of the policy's entropy; below 0 keeps it from becoming sure
    balance_coefficient: float = 0.01  # of the balance loss
    balance_over: BalanceOver = "batch"  # as in switch, whose loss it is

    def num_parameters(self, d_model: int, num_experts: int) -> int:
        return d_model * (num_experts + 1) + 1

    def draws_in_training(self, num_experts: int) -> bool:
        return num_experts > 1

    def check(self, recipe: Facts) -> Iterator[Problem]:
        yield from super().check(recipe)
        if recipe.objective.kind != "language":
            yield Problem(
                "moe.router.kind",
                self.kind,
                f"learns from the loss of each token's prediction, but objective.kind={recipe.objective.kind} does not "
                "have one for every routed token",
                "set objective.kind=language, or use moe.router.kind=switch",
            )
        if self.policy_coefficient == 0:
            yield Problem(
                "moe.router.policy_coefficient",
                self.policy_coefficient,
                "must be above 0, or the policy learns nothing: its experts have weight 1",
                "use 0.01, or moe.router.kind=random for routing that does not learn",
            )
