"""Holds the options of `moe.router.kind=batch_priority`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from moe_train.config.kinds.facts import Facts
from moe_train.config.kinds.router.expectations import Expectations
from moe_train.config.kinds.router.router import BalanceLossConfig, BalanceOver, k_must_fit
from moe_train.config.problem import Problem


@dataclass
class BatchPriorityRouterConfig(BalanceLossConfig):
    """Configures V-MoE (2106.05974) with batch-prioritised routing: full experts drop the least certain tokens."""

    kind: str = "batch_priority"
    k: int = 2  # experts per token
    priority: Literal["largest", "sum"] = (
        "largest"  # which of a token's k gates decides its priority at full experts
    )
    noise: float = 1.0  # standard deviation of the logits' noise in training, times moe.num_experts
    importance_coefficient: float = 0.005
    load_coefficient: float = 0.005
    balance_coefficient: float = 0.0  # of the balance loss
    balance_over: BalanceOver = (
        "batch"  # appendix A sums over a batch of images; the code over a routing group
    )

    @property
    def sees_later_tokens(self) -> bool:
        return True

    @property
    def num_choices(self) -> int:
        return self.k

    def expectations(self) -> Expectations:
        """Expects tokens without an expert: which ones is what the method is about."""
        return Expectations(drops_by_design=True)

    def draws_in_training(self, num_experts: int) -> bool:
        return (self.noise > 0 or self.jitter > 0) and num_experts > 1

    def check(self, recipe: Facts) -> Iterator[Problem]:
        yield from super().check(recipe)
        yield from k_must_fit(self.k, recipe)
        if self.noise < 0:
            yield Problem("moe.router.noise", self.noise, "must be at least 0", "use 1, or 0 for none")
