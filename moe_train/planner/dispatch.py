"""Implements the dispatcher of `moe-train plan`: `all_to_all` with sizes that are expected instead of counted.

It issues the same collectives and copies the same rows; what follows from values of tensors, which a trace does not
have, comes from `layout/rows.py`. No recipe can name it.
P parts of the tokens, W ranks that exchange rows, L experts of each.
"""

from collections.abc import Sequence
from dataclasses import replace

from jaxtyping import Int
from torch import Tensor

from moe_train.config.kinds.dispatch import AllToAllDispatchConfig
from moe_train.layout.rows import ExpectedRows, evenly
from moe_train.moe.dispatch.all_to_all import AllToAllDispatcher, ExchangePlan
from moe_train.moe.dispatch.dispatcher import Dispatcher
from moe_train.moe.routing import Routing


class PlannedDispatcher(AllToAllDispatcher):
    """Sends and receives the expected numbers of rows."""

    def __init__(
        self, built: Dispatcher, expected: ExpectedRows | None, imbalance: float, num_slices: int = 1
    ):
        """Takes the place of `built`. Without `expected` every edge is sent: where edges do not depend on values.

        `num_slices` are the edges that each edge to an expert has become, where experts are cut.
        """
        assert isinstance(built, AllToAllDispatcher)
        super().__init__(
            AllToAllDispatchConfig(), num_experts=built.num_ranks * built.num_local, group=built.group
        )
        self.expected, self.imbalance, self.num_slices = expected, imbalance, num_slices

    def plan(self, parts: Sequence[Routing]) -> list[ExchangePlan]:
        return super().plan([_first(part, self._sent(part)) for part in parts])

    def _host_sizes(
        self, parts: Sequence[Routing], sent: Int[Tensor, "P W L"], received: Int[Tensor, "P W L"]
    ) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
        numbers = [self._received(part) for part in parts]
        return (
            [evenly(self._sent(part), self.num_ranks) for part in parts],
            [evenly(number, self.num_ranks) for number in numbers],
            [evenly(number, self.num_local) for number in numbers],
        )

    def _sent(self, part: Routing) -> int:
        """Returns the rows of a part: as many as are expected, if there are as many edges."""
        edges = len(part.token_ids)
        return (
            edges
            if self.expected is None
            else min(self.num_slices * self.expected.sent(part.num_tokens), edges)
        )

    def _received(self, part: Routing) -> int:
        if self.expected is None:
            return len(part.token_ids)
        return self.num_slices * self.expected.received(part.num_tokens, self.imbalance)


def _first(routing: Routing, number: int) -> Routing:
    """Returns the first edges of a routing."""
    return replace(
        routing,
        token_ids=routing.token_ids[:number],
        expert_ids=routing.expert_ids[:number],
        choices=routing.choices[:number],
        weights=routing.weights[:number],
    )
