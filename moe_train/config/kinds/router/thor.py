"""Holds the options of `moe.router.kind=thor`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from moe_train.config.kinds.facts import Facts
from moe_train.config.kinds.router.expectations import Expectations
from moe_train.config.kinds.router.router import (
    RouterConfig,
    capacity_must_be_null,
)
from moe_train.config.problem import Problem


@dataclass
class ThorRouterConfig(RouterConfig):
    """Configures THOR (2110.04260): one random expert per layer and forward pass, for the whole batch."""

    depends_on_expert_number: ClassVar[bool] = True
    may_split_equal_tokens: ClassVar[bool] = True

    kind: str = "thor"
    inference: Literal["sequence", "token", "batch", "ensemble", "fixed"] = "sequence"  # see routers/thor.py
    fixed_expert: int = 0  # which one, for inference=fixed

    def expectations(self) -> Expectations:
        """Expects nothing: one expert has all tokens of a pass, and no weight of a router learns."""
        return Expectations(uses_all_experts=False, learns=False)

    def num_parameters(self, d_model: int, num_experts: int) -> int:
        return 0

    def draws_in_training(self, num_experts: int) -> bool:
        return num_experts > 1

    def check(self, recipe: Facts) -> Iterator[Problem]:
        yield from capacity_must_be_null(recipe)
        if recipe.objective.kind != "consistency":
            yield Problem(
                "moe.router.kind",
                self.kind,
                f"draws experts at random, but objective.kind={recipe.objective.kind} does not make them agree",
                "set objective.kind=consistency",
            )
        if not 0 <= self.fixed_expert < recipe.moe.num_experts:
            yield Problem(
                "moe.router.fixed_expert",
                self.fixed_expert,
                f"must be an expert, from 0 to {recipe.moe.num_experts - 1}",
                "use 0",
            )
