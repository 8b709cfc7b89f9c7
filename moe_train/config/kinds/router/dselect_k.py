"""Holds the options of `moe.router.kind=dselect_k`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from moe_train.config.kinds.facts import Facts
from moe_train.config.kinds.router.router import BalanceLossConfig, BalanceOver, capacity_must_be_null
from moe_train.config.problem import Problem


@dataclass
class DSelectKRouterConfig(BalanceLossConfig):
    """Configures DSelect-k (2106.03760): a smooth choice by binary codes, of at most k experts once they settle."""

    depends_on_expert_number: ClassVar[bool] = True
    begins_by_itself: ClassVar[bool] = True

    kind: str = "dselect_k"
    k: int = 2  # selectors, so experts per token in the end
    gamma: float = 1.0  # width of the smooth step
    entropy_coefficient: float = 1e-6  # of the selectors' entropy, which settles them
    balance_coefficient: float = 0.0  # of the balance loss, as in dense_to_sparse
    balance_over: BalanceOver = "batch"  # the paper has no such loss; as in dense_to_sparse

    @property
    def num_choices(self) -> int:
        return self.k

    def num_parameters(self, d_model: int, num_experts: int) -> int:
        return d_model * self.num_outputs(num_experts)

    def num_outputs(self, num_experts: int) -> int:
        """Returns the router's outputs: for each selector the binary digits of an expert's number, and its weight."""
        return self.k * ((num_experts - 1).bit_length() + 1)

    def check(self, recipe: Facts) -> Iterator[Problem]:
        yield from super().check(recipe)
        yield from capacity_must_be_null(recipe)
        experts = recipe.moe.num_experts
        if not 1 <= self.k <= experts:
            yield Problem(
                "moe.router.k",
                self.k,
                f"must be between 1 and moe.num_experts={experts}",
                "the paper uses 2 to 7",
            )
        if experts & (experts - 1):
            yield Problem(
                "moe.num_experts",
                experts,
                "must be a power of two, or some codes of moe.router.kind=dselect_k name no expert",
                f"use {1 << (experts.bit_length() - 1)} or {1 << experts.bit_length()}",
            )
        if self.gamma <= 0:
            yield Problem("moe.router.gamma", self.gamma, "must be above 0", "use 1")

    def notes(self, recipe: Facts) -> Iterator[str]:
        yield (
            f"moe.router.kind={self.kind}: FLOPs and active parameters are those of k={self.k} experts per token; "
            f"until the selectors have settled a token has up to {recipe.moe.num_experts}, and the logged load says "
            "how many it had"
        )
