"""Holds the options of `moe.router.kind=base`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from moe_train.config.kinds.facts import Facts
from moe_train.config.kinds.router.router import GateConfig, capacity_must_be_null
from moe_train.config.problem import Problem


@dataclass
class BaseRouterConfig(GateConfig):
    """Configures BASE (2103.16716): equal loads in training by a linear assignment, the best expert in validation."""

    scores_residual: ClassVar[bool] = True
    begins_as_identity: ClassVar[bool] = True
    begins_by_itself: ClassVar[bool] = True

    kind: str = "base"

    def draws_in_training(self, num_experts: int) -> bool:
        return self.jitter > 0

    def check(self, recipe: Facts) -> Iterator[Problem]:
        yield from super().check(recipe)
        yield from capacity_must_be_null(recipe)

    def notes(self, recipe: Facts) -> Iterator[str]:
        yield (
            f"moe.router.kind={self.kind}: in training an expert is assigned with regard to all tokens of the group, "
            "later ones too; in validation it is not, so validation is causal"
        )
