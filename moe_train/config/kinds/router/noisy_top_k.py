"""Holds the options of `moe.router.kind=noisy_top_k`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from moe_train.config.kinds.facts import Facts
from moe_train.config.kinds.router.router import BalanceLossConfig, BalanceOver
from moe_train.config.problem import Problem


@dataclass
class NoisyTopKRouterConfig(BalanceLossConfig):
    """Configures noisy top-k (Shazeer et al., 1701.06538): a softmax over the k largest logits with learned noise."""

    begins_by_itself: ClassVar[bool] = True

    kind: str = "noisy_top_k"
    k: int = 2  # experts per token; the paper's flat layers have 4
    importance_coefficient: float = 0.1  # w_importance: of CV^2 of the experts' summed weights
    load_coefficient: float = 0.1  # w_load: of CV^2 of the smooth estimate of the loads
    balance_coefficient: float = 0.0  # of the balance loss
    balance_over: BalanceOver = "batch"  # eq. 6-11: sums over "a batch of training examples"

    @property
    def num_choices(self) -> int:
        return self.k

    def num_parameters(self, d_model: int, num_experts: int) -> int:
        return 2 * d_model * num_experts

    def draws_in_training(self, num_experts: int) -> bool:
        return num_experts > 1

    def check(self, recipe: Facts) -> Iterator[Problem]:
        yield from super().check(recipe)
        if not 2 <= self.k <= recipe.moe.num_experts:
            yield Problem(
                "moe.router.k",
                self.k,
                f"must be between 2 and moe.num_experts={recipe.moe.num_experts}: the softmax over one kept logit is 1 "
                "whatever the router learns",
                "use 2 or 4, or moe.router.kind=switch for one expert",
            )
