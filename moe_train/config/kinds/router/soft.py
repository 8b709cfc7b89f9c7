"""Holds the options of `moe.router.kind=soft`."""

from collections.abc import Iterator
from dataclasses import dataclass

from moe_train.config.kinds.facts import Facts
from moe_train.config.kinds.router.mixing import MixingRouterConfig
from moe_train.config.problem import Problem


@dataclass
class SoftRouterConfig(MixingRouterConfig):
    """Configures Soft MoE (2308.00951): experts get slots, each a mixture of all tokens of a sequence."""

    kind: str = "soft"
    slots_per_expert: int = (
        1  # of a sequence; slots in all set the cost, the paper has about one for each token
    )

    @property
    def sees_later_tokens(self) -> bool:
        return True

    def num_parameters(self, d_model: int, num_experts: int) -> int:
        return d_model * num_experts * self.slots_per_expert + 1

    def num_products(self, d_model: int, num_experts: int, length: int) -> float:
        """Counts three products with all slots: the logits, slots from tokens, and tokens from slots."""
        return 3 * d_model * num_experts * self.slots_per_expert

    def experts_per_token(self, num_experts: int, length: int) -> float:
        return num_experts * self.slots_per_expert / length

    def check(self, recipe: Facts) -> Iterator[Problem]:
        yield from super().check(recipe)
        if self.slots_per_expert < 1:
            fair = -(-recipe.data.sequence_length // recipe.moe.num_experts)
            yield Problem(
                "moe.router.slots_per_expert",
                self.slots_per_expert,
                "must be at least 1",
                f"use {fair} for as many slots as tokens",
            )

    def notes(self, recipe: Facts) -> Iterator[str]:
        slots = recipe.moe.num_experts * self.slots_per_expert
        yield (
            f"moe.router.kind={self.kind}: FLOPs are those of {slots} slots per sequence, active parameters of one "
            "expert, though a token gets something from all of them; the logged load counts slots"
        )
