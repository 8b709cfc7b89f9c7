"""Defines the base of routers without parameters."""

from dataclasses import dataclass
from typing import ClassVar

from moe_train.config.kinds.router.expectations import Expectations
from moe_train.config.kinds.router.router import RouterConfig


@dataclass
class FixedRouterConfig(RouterConfig):
    """Is the base of routers without parameters."""

    may_split_equal_tokens: ClassVar[bool] = True

    def expectations(self) -> Expectations:
        """Expects nothing: no weight of a router learns, and how even the loads are is the method's."""
        return Expectations(uses_all_experts=False, learns=False)

    def num_parameters(self, d_model: int, num_experts: int) -> int:
        return 0
