"""Describes which part of a global tensor a rank holds, which a checkpoint writes and fills again on loading.

A checkpoint does not depend on data or expert parallelism. An engine describes each of its local tensors as a box of a
global tensor, so any layout can read what any other wrote.
"""

from collections.abc import Mapping
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


ShardedState = Mapping[str, Shard]
"""Global name -> what this rank holds of it. Each element of a global tensor is in one box that its rank owns."""


def is_held(shard: Shard) -> bool:
    """Returns whether the box has any element; a rank may hold nothing of a tensor."""
    return shard.data.numel() > 0


def is_written(shard: Shard) -> bool:
    """Returns whether this rank writes its box: if it owns the box, and it has any element."""
    return shard.is_owner and is_held(shard)


def dtype_name(data: Tensor) -> str:
    """Returns the type of its elements as a manifest says it: float32, bfloat16, ..."""
    return str(data.dtype).removeprefix("torch.")
