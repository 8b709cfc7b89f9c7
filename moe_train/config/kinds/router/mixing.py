"""Gives the routers of layers without edges what they share: an expert there gets a mixture of tokens or of weights."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moe_train.config.kinds.router.router import RouterConfig, capacity_must_be_null
from moe_train.config.problem import Problem

if TYPE_CHECKING:
    from moe_train.config.schema import Recipe


@dataclass
class MixingRouterConfig(RouterConfig):
    """Base of soft and smear: every token meets all experts in some way, each sequence by itself."""

    def check(self, recipe: "Recipe") -> Iterator[Problem]:
        yield from capacity_must_be_null(recipe)
        if recipe.moe.expert_dropout:
            yield Problem(
                "moe.expert_dropout",
                recipe.moe.expert_dropout,
                f"is drawn for each token at its expert, and moe.router.kind={self.kind} sends no tokens to experts",
                "leave it out, or use model.dropout",
            )
        if recipe.moe.group_sequences != 1:
            yield Problem(
                "moe.group_sequences",
                recipe.moe.group_sequences,
                f"has no meaning with moe.router.kind={self.kind}, which looks at each sequence by itself",
                "leave it out",
            )
