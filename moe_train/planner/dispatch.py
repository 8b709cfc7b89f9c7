"""Implements the dispatcher of `moe-train plan`: `all_to_all` with sizes that are expected instead of counted.

It issues the same collectives and copies the same rows; what follows from values of tensors, which a trace does not
have, comes from `layout/rows.py`. No recipe can name it.
T tokens on this rank, D model width, E experts.
"""

from dataclasses import replace

from jaxtyping import Float, Int
from torch import Tensor

from moe_train.config.kinds.dispatch import AllToAllDispatchConfig
from moe_train.layout.rows import ExpectedRows, evenly
from moe_train.moe.dispatch.all_to_all import AllToAllDispatcher
from moe_train.moe.dispatch.dispatcher import Dispatched, Dispatcher
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
        self._sent = self._received = 0

    def dispatch(self, x: Float[Tensor, "T D"], routing: Routing) -> Dispatched:
        edges = len(routing.token_ids)
        self._sent = self._received = edges
        if self.expected is not None:
            self._sent = min(self.num_slices * self.expected.sent(routing.num_tokens), edges)
            self._received = self.num_slices * self.expected.received(routing.num_tokens, self.imbalance)
        return super().dispatch(x, _first(routing, self._sent))

    def _host_sizes(
        self, sent: Int[Tensor, " E"], received: Int[Tensor, " E"]
    ) -> tuple[list[int], list[int], list[int]]:
        send, receive = evenly(self._sent, self.num_ranks), evenly(self._received, self.num_ranks)
        return send, receive, evenly(self._received, self.num_local)


def _first(routing: Routing, number: int) -> Routing:
    """Returns the first edges of a routing."""
    return replace(
        routing,
        token_ids=routing.token_ids[:number],
        expert_ids=routing.expert_ids[:number],
        choices=routing.choices[:number],
        weights=routing.weights[:number],
    )
