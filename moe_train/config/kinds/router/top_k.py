"""Holds the options of `moe.router.kind=top_k`."""

from collections.abc import Iterator
from dataclasses import dataclass

from moe_train.config.kinds.facts import Facts
from moe_train.config.kinds.router.router import BalanceLossConfig, BalanceOver, k_must_fit
from moe_train.config.problem import Problem


@dataclass
class TopKRouterConfig(BalanceLossConfig):
    """Chooses the k largest of a softmax over all experts."""

    kind: str = "top_k"
    k: int = 2  # experts per token
    normalize: bool = True  # the k weights of a token sum to 1
    balance_coefficient: float = 0.01
    balance_over: BalanceOver = "batch"  # as in switch, whose loss it is

    @property
    def num_choices(self) -> int:
        return self.k

    def check(self, recipe: Facts) -> Iterator[Problem]:
        yield from k_must_fit(self.k, recipe)
        if self.k == 1 and self.normalize:
            yield Problem(
                "moe.router.normalize",
                "true",
                "must be false with moe.router.k=1, or every weight is 1 and the router does not learn the task",
                "set moe.router.normalize=false, or use moe.router.kind=switch",
            )
        yield from super().check(recipe)
