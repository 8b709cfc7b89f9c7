"""Holds the options of `moe.router.kind=expert_choice`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from moe_train.config.kinds.facts import Facts
from moe_train.config.kinds.router.router import GateConfig, capacity_must_be_null
from moe_train.config.problem import Problem


@dataclass
class ExpertChoiceRouterConfig(GateConfig):
    """Configures expert choice (2202.09368): every expert takes its best tokens; a token gets none to all experts."""

    may_split_equal_tokens: ClassVar[bool] = True

    kind: str = "expert_choice"
    tokens_per_expert: float = (
        2.0  # as a multiple of the fair share, tokens / experts; experts a token has on average
    )

    @property
    def sees_later_tokens(self) -> bool:
        return True

    @property
    def num_choices(self) -> int:
        return max(round(self.tokens_per_expert), 1)

    def check(self, recipe: Facts) -> Iterator[Problem]:
        yield from super().check(recipe)
        yield from capacity_must_be_null(recipe)
        if not 0 < self.tokens_per_expert <= recipe.moe.num_experts:
            yield Problem(
                "moe.router.tokens_per_expert",
                self.tokens_per_expert,
                f"must be above 0 and at most moe.num_experts={recipe.moe.num_experts}",
                "the paper uses 2",
            )
