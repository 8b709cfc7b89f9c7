"""Routers that draw experts instead of scoring them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from moe_train.config.kinds.router.router import (
    BalanceLossConfig,
    BalanceOver,
    RouterConfig,
    capacity_must_be_null,
)
from moe_train.config.problem import Problem

if TYPE_CHECKING:
    from moe_train.config.schema import Recipe


@dataclass
class ThorRouterConfig(RouterConfig):
    """THOR (2110.04260): one random expert per layer and forward pass, for the whole batch."""

    depends_on_expert_number: ClassVar[bool] = True
    may_split_equal_tokens: ClassVar[bool] = True

    kind: str = "thor"
    inference: Literal["sequence", "token", "batch", "ensemble", "fixed"] = "sequence"  # see routers/thor.py
    fixed_expert: int = 0  # which one, for inference=fixed

    def num_parameters(self, d_model: int, num_experts: int) -> int:
        return 0

    def draws_in_training(self, num_experts: int) -> bool:
        return num_experts > 1

    def check(self, recipe: "Recipe") -> Iterator[Problem]:
        yield from capacity_must_be_null(recipe)
        if recipe.objective.kind != "consistency":
            yield Problem(
                "moe.router.kind",
                self.kind,
                f"draws experts at random, and objective.kind={recipe.objective.kind} does not make them agree",
                "set objective.kind=consistency",
            )
        if not 0 <= self.fixed_expert < recipe.moe.num_experts:
            yield Problem(
                "moe.router.fixed_expert",
                self.fixed_expert,
                f"must be an expert, from 0 to {recipe.moe.num_experts - 1}",
                "use 0",
            )


@dataclass
class ReinforceRouterConfig(BalanceLossConfig):
    """RL-R (2202.01169): a policy draws each token's expert and learns by REINFORCE from the token's loss."""

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

    def check(self, recipe: "Recipe") -> Iterator[Problem]:
        yield from super().check(recipe)
        if recipe.objective.kind != "language":
            yield Problem(
                "moe.router.kind",
                self.kind,
                f"learns from the loss of each token's prediction, and objective.kind={recipe.objective.kind} has none "
                "for every token that is routed",
                "set objective.kind=language, or use moe.router.kind=switch",
            )
        if self.policy_coefficient == 0:
            yield Problem(
                "moe.router.policy_coefficient",
                self.policy_coefficient,
                "must be above 0, or no token's loss teaches the policy: its experts have weight 1",
                "use 0.01, or moe.router.kind=random for experts that nothing teaches",
            )
