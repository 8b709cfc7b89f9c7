"""Holds the options of `moe.router.kind=smear`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from moe_train.config.kinds.facts import Facts
from moe_train.config.kinds.router.mixing import MixingRouterConfig
from moe_train.config.problem import Problem


@dataclass
class SmearRouterConfig(MixingRouterConfig):
    """Configures SMEAR (2306.03745): one expert per sequence, merged from all weights; with segments it is causal."""

    sends_rows: ClassVar[bool] = False

    kind: str = "smear"
    segment: int | None = (
        None  # tokens that share a merged expert, made from the segment before (Lory); null: all
    )
    drop_experts: float = 0.1  # chance of an expert to be left out of a merge, in training

    @property
    def sees_later_tokens(self) -> bool:
        return self.segment is None

    def num_parameters(self, d_model: int, num_experts: int) -> int:
        return d_model * (num_experts + 1)

    def num_products(self, d_model: int, num_experts: int, length: int) -> float:
        return d_model * num_experts / min(self.segment or length, length)

    def experts_per_token(self, num_experts: int, length: int) -> float:
        """Returns 1 for the merged expert plus a token's share of the merge, one product per weight of all experts."""
        return 1 + num_experts / min(self.segment or length, length)

    def draws_in_training(self, num_experts: int) -> bool:
        return self.drop_experts > 0 and num_experts > 1

    def check(self, recipe: Facts) -> Iterator[Problem]:
        yield from super().check(recipe)
        if self.segment is not None and self.segment < 1:
            yield Problem(
                "moe.router.segment",
                self.segment,
                "must be at least 1",
                "use an eighth of the sequence, or null for one merge a sequence",
            )
        if not 0 <= self.drop_experts < 1:
            yield Problem("moe.router.drop_experts", self.drop_experts, "must be in [0, 1)", "use 0.1, or 0")

    def check_stack(self, name: str, length: int) -> Iterator[Problem]:
        if self.segment is not None and self.segment >= length:
            yield Problem(
                "moe.router.segment",
                self.segment,
                f"must be below the {length} tokens of a sequence in the {name}, or no token there has a segment "
                "before its own",
                f"use an eighth of that, {max(length // 8, 1)}, or null for one merge a sequence",
            )

    def notes(self, recipe: Facts) -> Iterator[str]:
        yield (
            f"moe.router.kind={self.kind}: FLOPs are those of the merge and of one expert, active parameters those of "
            "one expert; the logged load gives a token to the expert with the largest part in its merge"
        )
