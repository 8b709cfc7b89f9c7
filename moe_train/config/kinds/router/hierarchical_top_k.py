"""Holds the options of `moe.router.kind=hierarchical_top_k`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from moe_train.config.kinds.facts import Facts
from moe_train.config.kinds.router.router import BalanceLossConfig, BalanceOver
from moe_train.config.problem import Problem


@dataclass
class HierarchicalTopKRouterConfig(BalanceLossConfig):
    """Configures noisy top-k on two levels (1701.06538, appendix B): groups, then experts of the chosen groups."""

    begins_by_itself: ClassVar[bool] = True

    kind: str = "hierarchical_top_k"
    num_groups: int = 4  # sets of neighbouring experts; divides moe.num_experts
    top_groups: int = 2  # groups per token
    k: int = 2  # experts per token in each of its groups
    importance_coefficient: float = 0.1  # as in noisy_top_k
    load_coefficient: float = 0.1
    balance_coefficient: float = 0.0  # of the balance loss
    balance_over: BalanceOver = "batch"  # as in noisy_top_k

    @property
    def num_choices(self) -> int:
        return self.top_groups * self.k

    def num_parameters(self, d_model: int, num_experts: int) -> int:
        return 2 * d_model * (num_experts + self.num_groups)

    def draws_in_training(self, num_experts: int) -> bool:
        return num_experts > 1

    def check(self, recipe: Facts) -> Iterator[Problem]:
        yield from super().check(recipe)
        experts = recipe.moe.num_experts
        if self.num_groups < 2 or experts % self.num_groups:
            yield Problem(
                "moe.router.num_groups",
                self.num_groups,
                f"must be at least 2 and divide moe.num_experts={experts}",
                "choose a divisor, or moe.router.kind=noisy_top_k for one level",
            )
            return
        for key, value, most in (
            ("top_groups", self.top_groups, self.num_groups),
            ("k", self.k, experts // self.num_groups),
        ):
            if not 2 <= value <= most:
                yield Problem(
                    f"moe.router.{key}",
                    value,
                    f"must be between 2 and {most}, with moe.router.num_groups={self.num_groups} and moe.num_experts="
                    f"{experts}: the softmax over one kept logit is 1 whatever the router learns",
                    "use 2, or fewer groups of more experts",
                )
