"""Holds the options of `moe.router.kind=deepseek`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from moe_train.config.kinds.facts import Facts
from moe_train.config.kinds.router.router import BalanceLossConfig, BalanceOver, k_must_fit
from moe_train.config.problem import Problem


@dataclass
class DeepSeekRouterConfig(BalanceLossConfig):
    """Configures DeepSeek-V3 (2412.19437) by default; moe.shared_experts and moe.d_ff complete DeepSeekMoE."""

    kind: str = "deepseek"
    k: int = 2  # routed experts per token
    scores: Literal["sigmoid", "softmax"] = "sigmoid"  # softmax: V1 and V2
    num_groups: int = 1  # sets of neighbouring experts, such as those of one host; 1: no limit
    top_groups: int = 1  # groups that a token's experts may come from; num_groups: no limit
    normalize: bool = True  # the k weights of a token sum to 1; V1: false
    weight_scale: float = 1.0  # factor of all weights after that
    bias_rate: float = 0.001  # loss-free balancing: change of an expert's bias per update; 0: none
    balance_coefficient: float = 0.0  # of the balance loss
    group_balance_coefficient: float = 0.0  # of the same over groups, V1's and V2's device-level balance loss
    balance_over: BalanceOver = "sequence"  # V3 eq. 17-20; in V1 and V2 too T is a sequence's length

    @property
    def num_choices(self) -> int:
        return self.k

    def draws_in_training(self, num_experts: int) -> bool:
        is_constant = num_experts == 1 and (self.scores == "softmax" or self.normalize)
        return self.jitter > 0 and not is_constant

    def check(self, recipe: Facts) -> Iterator[Problem]:
        yield from super().check(recipe)
        experts = recipe.moe.num_experts
        yield from k_must_fit(self.k, recipe)
        if self.k == 1 and self.normalize:
            yield Problem(
                "moe.router.normalize",
                "true",
                "must be false with moe.router.k=1, or every weight is equal and the router does not learn the task",
                "set moe.router.normalize=false",
            )
        if self.num_groups < 1 or experts % self.num_groups:
            yield Problem(
                "moe.router.num_groups",
                self.num_groups,
                f"must divide moe.num_experts={experts}",
                "use 1 for no limit, or a divisor",
            )
        elif self.k <= experts and not self._groups_fit(experts // self.num_groups):
            yield Problem(
                "moe.router.top_groups",
                self.top_groups,
                f"must be moe.router.num_groups={self.num_groups}, or below that, divide moe.router.k={self.k} and "
                f"leave room for {self.k} experts in groups of {experts // self.num_groups}",
                "lower moe.router.k, or set it to moe.router.num_groups for no limit",
            )
        if self.group_balance_coefficient and self.num_groups == 1:
            yield Problem(
                "moe.router.group_balance_coefficient",
                self.group_balance_coefficient,
                "has no effect with moe.router.num_groups=1, as one group has all tokens",
                "set moe.router.num_groups, and moe.router.top_groups to the same for no limit, or leave it at 0",
            )
        if self.bias_rate < 0:
            yield Problem("moe.router.bias_rate", self.bias_rate, "must be at least 0", "the paper has 0.001")
        if self.weight_scale <= 0:
            yield Problem(
                "moe.router.weight_scale",
                self.weight_scale,
                "must be above 0, or routed experts are ignored or negated",
                "use 1, or DeepSeek-V3's 2.5",
            )

    def _groups_fit(self, group: int) -> bool:
        if self.top_groups == self.num_groups:
            return True
        return (
            1 <= self.top_groups < self.num_groups
            and self.k % self.top_groups == 0
            and self.k <= group * self.top_groups
        )
