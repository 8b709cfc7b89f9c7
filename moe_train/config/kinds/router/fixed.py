"""Defines the base of routers without parameters."""

from dataclasses import dataclass
from typing import ClassVar

from moe_train.config.kinds.router.router import RouterConfig


@dataclass
class FixedRouterConfig(RouterConfig):
    """Is the base of routers without parameters."""

    may_split_equal_tokens: ClassVar[bool] = True

    def num_parameters(self, d_model: int, num_experts: int) -> int:
        return 0
