"""What an optimizer keeps, as boxes of global tensors: how its state gets into a checkpoint of any layout."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from moe_train.checkpoint.layout import Shard

REDUCED = {"row": -1, "column": -2}
"""State that is a mean over one dimension of its parameter, by key: that dimension."""


def sharded_state(
    optimizer: torch.optim.Optimizer, shards: Mapping[str, Shard], is_main: bool
) -> dict[str, Shard]:
    """Returns the state of every parameter, as `optim.KEY.NAME`: a scalar, its parameter's box, or that box reduced.

    Every rank has the scalars; the main one owns them.
    """
    return {
        f"optim.{key}.{name}": _place(key, value, shard, is_main)
        for name, shard in shards.items()
        for key, value in optimizer.state[shard.data].items()
    }


def forget(optimizer: torch.optim.Optimizer, shard: Shard) -> None:
    """Make what is kept of a parameter what it was before the first update, the count of updates included."""
    for value in optimizer.state[shard.data].values():
        value.zero_()


def _place(key: str, value: Tensor, shard: Shard, is_main: bool) -> Shard:
    if value.ndim == 0:
        return Shard(value, (), (), is_owner=is_main)
    if key not in REDUCED:
        return replace(shard, data=value)
    gone = len(shard.global_shape) + REDUCED[key]
    # Boxes that differ in the dimension that is gone hold the same means; the rank of the first one owns them.
    return Shard(
        value,
        _without(shard.global_shape, gone),
        _without(shard.offsets, gone),
        shard.is_expert,
        is_owner=shard.is_owner and shard.offsets[gone] == 0,
    )


def _without(sizes: tuple[int, ...], dim: int) -> tuple[int, ...]:
    return sizes[:dim] + sizes[dim + 1 :]
