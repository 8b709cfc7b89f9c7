"""Describes which part of a global tensor a rank holds, which a checkpoint writes and fills again on loading.

A checkpoint does not depend on the layout or the engine. An engine describes what it holds of a global tensor as boxes
of it, so any layout can read what any other wrote. `fragments.py` makes boxes of what is flattened.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Shard:
    """Describes a local tensor as a box of a global tensor."""

    data: Tensor
    """Local values; loading writes into them in place."""
    global_shape: tuple[int, ...]
    offsets: tuple[int, ...]
    """Where `data[0, ..., 0]` stands in the global tensor."""
    is_expert: bool = False
    """The first dimension counts experts by their global id."""
    is_owner: bool = True
    """Of the ranks that hold this box, one owns it: it counts it in norms and checksums, and writes it."""


ShardedState = Mapping[str, Sequence[Shard]]
"""Global name -> the boxes that this rank holds of it, none if it holds nothing.

Each element of a global tensor is in one box that its rank owns. Boxes of a name agree in all but data, offsets and
owner.
"""


def boxes_of(state: ShardedState) -> Iterator[tuple[str, Shard]]:
    """Yields every box of a state with the name of its tensor."""
    return ((name, shard) for name, shards in state.items() for shard in shards)


def alone(shards: Mapping[str, Shard]) -> ShardedState:
    """Returns the state of a rank that holds one box of each tensor."""
    return {name: (shard,) for name, shard in shards.items()}


def is_held(shard: Shard) -> bool:
    """Returns whether the box has any element; a rank may hold nothing of a tensor."""
    return shard.data.numel() > 0


def is_written(shard: Shard) -> bool:
    """Returns whether this rank writes its box: if it owns the box, and it has any element."""
    return shard.is_owner and is_held(shard)


def dtype_name(data: Tensor) -> str:
    """Returns the type of its elements as a manifest says it: float32, bfloat16, ..."""
    return str(data.dtype).removeprefix("torch.")
