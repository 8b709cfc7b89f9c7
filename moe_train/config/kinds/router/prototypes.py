"""Holds the options of `moe.router.kind=prototypes`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from moe_train.config.kinds.facts import Facts
from moe_train.config.kinds.router.router import BalanceLossConfig, BalanceOver
from moe_train.config.problem import Problem


@dataclass
class PrototypesRouterConfig(BalanceLossConfig):
    """Configures M6-T (2105.15082): experts in `prototypes` sets, and the best one of every set."""

    choices_compete: ClassVar[bool] = False

    kind: str = "prototypes"
    prototypes: int = 2  # sets of experts, so experts per token
    balance_coefficient: float = 0.01
    balance_over: BalanceOver = "batch"  # Hetu's KTop1Gate: all tokens that come to the layer

    @property
    def num_choices(self) -> int:
        return self.prototypes

    def check(self, recipe: Facts) -> Iterator[Problem]:
        experts = recipe.moe.num_experts
        if self.prototypes < 1 or experts % self.prototypes:
            yield Problem(
                "moe.router.prototypes",
                self.prototypes,
                f"must divide moe.num_experts={experts}, as all prototypes have the same number of experts",
                "choose a divisor, or another moe.num_experts",
            )
        yield from super().check(recipe)
