"""Holds the options of `moe.router.kind=sinkhorn`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from moe_train.config.kinds.facts import Facts
from moe_train.config.kinds.router.base import BaseRouterConfig
from moe_train.config.problem import Problem


@dataclass
class SinkhornRouterConfig(BaseRouterConfig):
    """Configures S-BASE (2202.01169): nearly equal loads in training, by Sinkhorn's scaling."""

    scores_residual: ClassVar[bool] = False
    begins_as_identity: ClassVar[bool] = False
    begins_by_itself: ClassVar[bool] = False

    kind: str = "sinkhorn"
    tolerance: float = 1e-4  # mean change of the columns' factors at which the scaling ends
    max_iterations: int = 200  # of the scaling, if it does not end before

    def check(self, recipe: Facts) -> Iterator[Problem]:
        yield from super().check(recipe)
        if self.tolerance <= 0:
            yield Problem("moe.router.tolerance", self.tolerance, "must be above 0", "use 1e-4")
        if self.max_iterations < 1:
            yield Problem("moe.router.max_iterations", self.max_iterations, "must be at least 1", "use 200")
