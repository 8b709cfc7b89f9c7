"""Gives an MoE layer whole sequences where each worker of a tensor group has a part of every sequence.

Routing groups are sequences, so no worker can route its part alone: all of them gather the rows and route them alike.
Their outputs are whole too (moe/dispatch/divided.py), of which each worker goes on with its part.
T rows of whole sequences, N of this worker's part, D model width.
"""

from jaxtyping import Float
from torch import Tensor

from moe_train.moe.rows import Rows
from moe_train.parallel.share import gather, split


def gather_sequences(x: Float[Tensor, "N D"], rows: Rows) -> Float[Tensor, "T D"]:
    """Returns the rows of whole sequences; each worker has the gradient of its own. Collective."""
    by_position = rows.lay_out(x).transpose(0, 1)
    whole = gather(by_position, rows.workers, rows.of_whole_sequences.length)
    return whole.transpose(0, 1).flatten(0, 1)


def split_sequences(y: Float[Tensor, "T D"], rows: Rows) -> Float[Tensor, "N D"]:
    """Returns this worker's rows of what all workers have; every worker gets the gradient of all. Collective then."""
    by_position = rows.of_whole_sequences.lay_out(y).transpose(0, 1)
    return rows.take(split(by_position, rows.workers).transpose(0, 1))
