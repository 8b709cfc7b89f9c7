"""Takes rows to their experts, through them and back, while the worker does something else than wait.

The worker's tokens are cut into halves, each with all edges of its tokens. The second half travels while the first is
at the experts, and the first travels back while the second is there. Shared experts run while the first half is on its
way. The routing is made beforehand, of whole groups, so nothing of it depends on the cut, and the sum over a token's
edges is that of `one_by_one`. With a single part, shared experts alone run beside it.

What is started is in `Turn`s, one after the other, so ranks agree on the order in both passes (turns.py):

    start 1, start 2 | shared experts | arrive 1 | experts 1 | back 1, arrive 2 | experts 2 | back 2, arrived 1, 2

The gradients of weights are sums over two products, rounded once more. All else is the same to the bit where a
product gives a row the same result whatever rows are beside it.
T tokens on this rank, K choices, D model width, F hidden width. Parts of rows are of different length (`_`), and empty
while they are under way.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from moe_kernels.all_to_all import Trip
from moe_train.moe.dispatch.all_to_all import AllToAllDispatcher, ExchangePlan
from moe_train.moe.dispatch.dispatcher import Dispatcher
from moe_train.moe.dispatch.divided import DividedDispatcher
from moe_train.moe.dispatch.through import Beside, Dropout
from moe_train.moe.dispatch.turns import Turn, arrive, start
from moe_train.moe.experts import Experts
from moe_train.moe.routing import Routing


@dataclass(frozen=True)
class Overlapped:
    """Does what `one_by_one` does, by `all_to_all` alone."""

    num_parts: int
    """Parts of the tokens: 1 or 2."""

    def __call__(
        self,
        dispatcher: Dispatcher,
        x: Float[Tensor, "T D"],
        routing: Routing,
        experts: Experts,
        dropout: Dropout | None = None,
        beside: Beside | None = None,
    ) -> tuple[Float[Tensor, "T D"], Float[Tensor, "_ D"] | None]:
        if isinstance(dispatcher, DividedDispatcher):
            edges, rows = dispatcher.edges_of_share(routing), dispatcher.rows_of_share(x, routing)
            if dropout is not None:
                dropout = replace(dropout, tokens=dispatcher.rows_of_share(dropout.tokens, routing))
            y, z = self(dispatcher.whole, rows, edges, experts, dropout, beside)
            return dispatcher.as_given(y, len(x), routing.num_tokens), z
        assert isinstance(dispatcher, AllToAllDispatcher), "config.check refuses others"
        plans = dispatcher.plan(_cut(routing, self.num_parts))
        return _travel(dispatcher, x, routing, plans, experts, dropout, beside)


def _cut(routing: Routing, num_parts: int) -> list[Routing]:
    """Returns runs of tokens as parts, with the edges of each; their weights have no gradient."""
    routing = replace(routing, weights=routing.weights.detach())
    if num_parts == 1:
        return [routing]
    half = -(-routing.num_tokens // 2)
    is_second = routing.token_ids >= half
    first, second = routing.keep(~is_second), routing.keep(is_second)
    return [
        replace(first, num_tokens=half),
        replace(second, token_ids=second.token_ids - half, num_tokens=routing.num_tokens - half),
    ]


def _travel(
    dispatcher: AllToAllDispatcher,
    x: Float[Tensor, "T D"],
    routing: Routing,
    plans: Sequence[ExchangePlan],
    experts: Experts,
    dropout: Dropout | None,
    beside: Beside | None,
) -> tuple[Float[Tensor, "T D"], Float[Tensor, "_ D"] | None]:
    """Makes the way of all parts in the order above."""
    number, sizes = len(plans), [len(plan.order.weights) for plan in plans]
    factors = _factors(dispatcher, plans, dropout, sizes)
    there, back = [dispatcher.there(plan) for plan in plans], [dispatcher.back(plan) for plan in plans]
    rows = [plan.order.gather(part) for plan, part in zip(plans, x.split(sizes), strict=True)]
    # Weights, and the input of shared experts, pass: so their gradients go on when all exchanges are done.
    moved = Turn.apply(
        tuple(map(start, range(number), there)),
        *rows,
        routing.weight_table(),
        *([] if beside is None else [beside.x]),
    )
    rows, weights, passed = moved[:number], moved[number], moved[number + 1 :]
    made = [] if beside is None else [beside.part(each) for each in passed]
    moved = Turn.apply((arrive(0, there[0]),), *rows, *made)
    rows, made = moved[:number], moved[number:]
    way = _one_part if number == 1 else _two_parts
    results = way(rows, plans, there, back, experts, factors)
    return _combined(plans, results, weights.split(sizes)), made[0] if made else None


def _one_part(
    rows: Sequence[Float[Tensor, "..."]],
    plans: Sequence[ExchangePlan],
    there: Sequence[Trip],
    back: Sequence[Trip],
    experts: Experts,
    factors: Sequence[Float[Tensor, "_ F"] | None],
) -> Sequence[Float[Tensor, "_ D"]]:
    """Applies the experts to rows that are here, and brings the results back."""
    results = experts(plans[0].by_expert(rows[0]), plans[0].counts, dropout=factors[0])
    brought: Sequence[Tensor] = Turn.apply(
        (start(0, back[0]), arrive(0, back[0])), plans[0].by_source(results)
    )
    return brought


def _two_parts(
    rows: Sequence[Float[Tensor, "..."]],
    plans: Sequence[ExchangePlan],
    there: Sequence[Trip],
    back: Sequence[Trip],
    experts: Experts,
    factors: Sequence[Float[Tensor, "_ F"] | None],
) -> Sequence[Float[Tensor, "_ D"]]:
    """Does the same with the first part here and the second under way."""

    def between(results: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        moves = (start(0, back[0]), arrive(1, there[1]))
        returning, second = Turn.apply(moves, plans[0].by_source(results), second)
        return returning, plans[1].by_expert(second)

    counts = [plan.counts for plan in plans]
    first = plans[0].by_expert(rows[0])
    returning, results = experts.in_two(first, rows[1], counts, factors, between)
    brought: Sequence[Tensor] = Turn.apply(
        (start(1, back[1]), arrive(0, back[0]), arrive(1, back[1])), returning, plans[1].by_source(results)
    )
    return brought


def _combined(
    plans: Sequence[ExchangePlan],
    results: Sequence[Float[Tensor, "_ D"]],
    weights: Sequence[Float[Tensor, "_ K"]],
) -> Float[Tensor, "T D"]:
    """Returns the weighted sums of all tokens, whose edges are in one part each."""
    orders = [replace(plan.order, weights=table) for plan, table in zip(plans, weights, strict=True)]
    return torch.cat([order.combine(rows) for order, rows in zip(orders, results, strict=True)])


def _factors(
    dispatcher: AllToAllDispatcher, plans: Sequence[ExchangePlan], dropout: Dropout | None, sizes: list[int]
) -> Sequence[Float[Tensor, "_ F"] | None]:
    """Returns the dropout factors of each part, whose tokens' numbers go before the rows. Collective with dropout."""
    if dropout is None:
        return [None] * len(plans)
    with torch.no_grad():
        return [
            dropout.factors(dispatcher.send(tokens, plan), plan.counts)
            for plan, tokens in zip(plans, dropout.tokens.split(sizes), strict=True)
        ]
