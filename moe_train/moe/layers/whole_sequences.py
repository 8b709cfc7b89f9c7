"""Gives an MoE layer whole sequences where each worker of a tensor group has a part of every sequence.

Routing groups are sequences, so no worker can route its part alone: all of them gather the router's input and route
whole sequences alike. Then each dispatches its own rows, where the edges are counted rank by rank
(moe/dispatch/divided.py). Layers that mix the tokens of a sequence gather these too, and go on with their part.
T rows of whole sequences, N of this worker's part, D model width.
"""

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from moe_train.moe.routing import Routing
from moe_train.moe.rows import Rows
from moe_train.parallel.share import gather, split


def gather_sequences(x: Float[Tensor, "N D"], rows: Rows) -> Float[Tensor, "T D"]:
    """Returns the rows of whole sequences; each has the gradient of its own. Collective, unless they are whole."""
    if rows.whole is None:
        return x
    by_position = rows.lay_out(x).transpose(0, 1)
    whole = gather(by_position, rows.workers, rows.of_whole_sequences.length)
    return whole.transpose(0, 1).flatten(0, 1)


def split_sequences(y: Float[Tensor, "T D"], rows: Rows) -> Float[Tensor, "N D"]:
    """Returns this worker's rows of what all workers have; every worker gets the gradient of all. Collective then."""
    if rows.whole is None:
        return y
    by_position = rows.of_whole_sequences.lay_out(y).transpose(0, 1)
    return rows.take(split(by_position, rows.workers).transpose(0, 1))


def count_by_rank(routing: Routing, rows: Rows) -> Routing:
    """Returns the same edges with tokens counted rank by rank, so that a rank's share of them are those it has."""
    if rows.whole is None:
        return routing
    sequences, positions = routing.token_ids // rows.whole.length, routing.token_ids % rows.whole.length
    ranks = positions // rows.length
    tokens = (ranks * len(rows.values) + sequences) * rows.length + positions % rows.length
    return replace(routing, token_ids=tokens)
