"""Holds the options of `moe.router.kind=gshard`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from moe_train.config.kinds.facts import Facts
from moe_train.config.kinds.router.router import BalanceLossConfig, BalanceOver
from moe_train.config.problem import Problem


@dataclass
class GShardRouterConfig(BalanceLossConfig):
    """Configures GShard (2006.16668), also GLaM's: the best expert, and a second one that may be random."""

    kind: str = "gshard"
    second_expert: Literal["random", "all", "sampling"] = "random"  # in training; see routers/gshard.py
    second_threshold: float = 0.5  # random: a second expert whose weight is above this is always used
    normalize_after_limit: bool = (
        False  # the two weights are made to sum to 1 after, not before, any is dropped
    )
    balance_coefficient: float = 0.01
    balance_over: BalanceOver = "group"  # alg. 1: its loss is one of the S tokens of a group

    @property
    def num_choices(self) -> int:
        return 2

    def draws_in_training(self, num_experts: int) -> bool:
        """Returns whether the second expert is random; sampling among two experts leaves no choice."""
        by_chance = self.second_expert == "random" or (self.second_expert == "sampling" and num_experts > 2)
        return by_chance or super().draws_in_training(num_experts)

    def check(self, recipe: Facts) -> Iterator[Problem]:
        if recipe.moe.num_experts < 2:
            yield Problem(
                "moe.num_experts",
                recipe.moe.num_experts,
                "must be at least 2 with moe.router.kind=gshard, which gives every token a second expert",
                "raise it, or use moe.router.kind=switch",
            )
        if not 0 < self.second_threshold <= 1:
            yield Problem(
                "moe.router.second_threshold",
                self.second_threshold,
                "must be above 0 and at most 1",
                "use 0.5, or moe.router.second_expert=all for every second expert",
            )
        yield from super().check(recipe)
