"""What an optimizer keeps, as boxes of global tensors: how its state gets into a checkpoint of any layout."""

from collections.abc import Mapping

import torch
from torch import Tensor

from moe_train.checkpoint.layout import Shard

REDUCED = {"row": -1, "column": -2}
"""State that is a mean over one dimension of its parameter, by key: that dimension."""


def sharded_state(optimizer: torch.optim.Optimizer, shards: Mapping[str, Shard]) -> dict[str, Shard]:
    """The state of every parameter, under `optim.KEY.NAME`: a scalar, its parameter's box, or that box reduced."""
    return {
        f"optim.{key}.{name}": _place(key, value, shard)
        for name, shard in shards.items()
        for key, value in optimizer.state[shard.data].items()
    }


def forget(optimizer: torch.optim.Optimizer, shard: Shard) -> None:
    """Make what is kept of a parameter what it was before the first update, the count of updates included."""
    for value in optimizer.state[shard.data].values():
        value.zero_()


def _place(key: str, value: Tensor, shard: Shard) -> Shard:
    if value.ndim == 0:
        return Shard(value, (), ())
    if key not in REDUCED:
        return Shard(value, shard.global_shape, shard.offsets, shard.is_expert)
    gone = len(shard.global_shape) + REDUCED[key]
    # Boxes that differ in the dimension that is gone hold the same means; the first of them writes.
    is_copy = shard.offsets[gone] > 0
    return Shard(
        value, _without(shard.global_shape, gone), _without(shard.offsets, gone), shard.is_expert, is_copy
    )


def _without(sizes: tuple[int, ...], dim: int) -> tuple[int, ...]:
    return sizes[:dim] + sizes[dim + 1 :]
