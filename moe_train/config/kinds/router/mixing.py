"""Defines the base of routers that mix tokens or weights instead of sending tokens to experts."""

from collections.abc import Iterator
from dataclasses import dataclass

from moe_train.config.kinds.facts import Facts
from moe_train.config.kinds.router.expectations import Expectations
from moe_train.config.kinds.router.router import RouterConfig, capacity_must_be_null
from moe_train.config.problem import Problem


@dataclass
class MixingRouterConfig(RouterConfig):
    """Is the base of soft and smear, in which every token uses all experts, each sequence by itself."""

    def expectations(self) -> Expectations:
        """Expects nothing of the loads: every token uses all experts, whichever has the largest part."""
        return Expectations(uses_all_experts=False)

    def check(self, recipe: Facts) -> Iterator[Problem]:
        yield from capacity_must_be_null(recipe)
        if recipe.moe.expert_dropout:
            yield Problem(
                "moe.expert_dropout",
                recipe.moe.expert_dropout,
                f"does not apply: moe.router.kind={self.kind} sends no tokens to experts",
                "leave it out, or use model.dropout",
            )
        if recipe.moe.group_sequences != 1:
            yield Problem(
                "moe.group_sequences",
                recipe.moe.group_sequences,
                f"does not apply: moe.router.kind={self.kind} routes each sequence by itself",
                "leave it out",
            )
