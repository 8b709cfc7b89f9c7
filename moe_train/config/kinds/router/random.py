"""Holds the options of `moe.router.kind=random`."""

from dataclasses import dataclass
from typing import ClassVar

from moe_train.config.kinds.router.fixed import FixedRouterConfig


@dataclass
class RandomRouterConfig(FixedRouterConfig):
    """Sends every token to an expert drawn anew at each step: the baseline that learned routing must beat."""

    depends_on_expert_number: ClassVar[bool] = True

    kind: str = "random"

    def draws_in_training(self, num_experts: int) -> bool:
        return num_experts > 1
