"""Takes rows to their experts, through them and back, one thing after the other.

`overlap.py` beside this file does the same with less waiting; this is its slow twin.
T tokens on this rank, D model width, R rows this rank's experts receive, F hidden width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from moe_train.moe.dispatch.dispatcher import Dispatcher
from moe_train.moe.experts import Experts
from moe_train.moe.routing import Routing


@dataclass(frozen=True)
class Dropout:
    """Makes dropout factors of experts' hidden units, which are functions of a row's token, wherever it comes from."""

    tokens: Float[Tensor, "T 4"]
    """The tokens' numbers (token_numbers.py), which travel along the same edges as their rows."""
    factors: Callable[[Float[Tensor, "R 4"], list[int]], Float[Tensor, "R F"]]
    """Is called with the numbers that arrived, and how many are for each expert."""


@dataclass(frozen=True)
class Beside:
    """Holds a part of the model that has nothing to do with the exchange, and may run while rows travel."""

    part: Callable[[Tensor], Tensor]
    x: Float[Tensor, "_ D"]


class Through(Protocol):
    """Returns the weighted sum of each token's experts, and what `beside` makes, if it is given. Collective.

    The tokens may be a share of those that `beside` sees.
    """

    def __call__(
        self,
        dispatcher: Dispatcher,
        x: Float[Tensor, "T D"],
        routing: Routing,
        experts: Experts,
        dropout: Dropout | None = None,
        beside: Beside | None = None,
    ) -> tuple[Float[Tensor, "T D"], Float[Tensor, "_ D"] | None]: ...


def one_by_one(
    dispatcher: Dispatcher,
    x: Float[Tensor, "T D"],
    routing: Routing,
    experts: Experts,
    dropout: Dropout | None = None,
    beside: Beside | None = None,
) -> tuple[Float[Tensor, "T D"], Float[Tensor, "_ D"] | None]:
    """Dispatches, applies the experts and combines; any dispatcher serves."""
    dispatched, factors = dispatcher.dispatch(x, routing), None
    if dropout is not None:
        with torch.no_grad():
            numbers = dispatcher.dispatch(dropout.tokens, routing).rows
        factors = dropout.factors(numbers, dispatched.counts)
    rows = experts(dispatched.rows, dispatched.counts, dispatched.empty_like, factors)
    y = dispatcher.combine(rows, dispatched)
    return y, None if beside is None else beside.part(beside.x)
