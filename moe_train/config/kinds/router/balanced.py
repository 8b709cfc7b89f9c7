"""Routers that balance loads by construction, from the scores of a whole routing group."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from moe_train.config.kinds.router.router import GateConfig, capacity_must_be_null
from moe_train.config.problem import Problem

if TYPE_CHECKING:
    from moe_train.config.schema import Recipe


@dataclass
class BalancedRouterConfig(GateConfig):
    """BASE (2103.16716): equal loads in training by a linear assignment; the best expert in validation."""

    kind: str = "base"

    def draws_in_training(self, num_experts: int) -> bool:
        return self.jitter > 0

    def check(self, recipe: "Recipe") -> Iterator[Problem]:
        yield from super().check(recipe)
        yield from capacity_must_be_null(recipe)

    def notes(self, recipe: "Recipe") -> Iterator[str]:
        yield (
            f"moe.router.kind={self.kind}: in training an expert is assigned with regard to all tokens of the group, "
            "later ones too; in validation it is not, so validation is causal"
        )


@dataclass
class SinkhornRouterConfig(BalancedRouterConfig):
    """S-BASE (2202.01169): nearly equal loads in training, by Sinkhorn's scaling."""

    kind: str = "sinkhorn"
    tolerance: float = 1e-4  # mean change of the columns' factors at which the scaling ends
    max_iterations: int = 200  # of the scaling, if it does not end before

    def check(self, recipe: "Recipe") -> Iterator[Problem]:
        yield from super().check(recipe)
        if self.tolerance <= 0:
            yield Problem("moe.router.tolerance", self.tolerance, "must be above 0", "use 1e-4")
        if self.max_iterations < 1:
            yield Problem("moe.router.max_iterations", self.max_iterations, "must be at least 1", "use 200")


@dataclass
class ExpertChoiceRouterConfig(GateConfig):
    """Expert choice (2202.09368): every expert takes its best tokens, so a token has from none to all experts."""

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

    def check(self, recipe: "Recipe") -> Iterator[Problem]:
        yield from super().check(recipe)
        yield from capacity_must_be_null(recipe)
        if not 0 < self.tokens_per_expert <= recipe.moe.num_experts:
            yield Problem(
                "moe.router.tokens_per_expert",
                self.tokens_per_expert,
                f"must be above 0 and at most moe.num_experts={recipe.moe.num_experts}",
                "the paper uses 2",
            )
