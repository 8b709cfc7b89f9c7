"""Describes an optimizer's state as boxes of global tensors, so that a checkpoint of any layout can have it."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from moe_train.checkpoint.layout import Shard, ShardedState, alone

REDUCED = {"row": -1, "column": -2}
"""Dimension of the parameter that a state averages over, by the state's key."""


def sharded_state(
    optimizer: torch.optim.Optimizer, shards: Mapping[str, Shard], is_main: bool
) -> ShardedState:
    """Returns the state of every parameter, as `optim.KEY.NAME`: a scalar, its parameter's box, or that box reduced.

    Every rank has the scalars; the main one owns them.
    """
    return alone(
        {
            f"optim.{key}.{name}": _place(key, value, shard, is_main)
            for name, shard in shards.items()
            for key, value in optimizer.state[shard.data].items()
        }
    )


def forget(optimizer: torch.optim.Optimizer, shard: Shard) -> None:
    """Resets the state of a parameter, including the count of updates, to that before the first update."""
    for value in optimizer.state[shard.data].values():
        value.zero_()


def _place(key: str, value: Tensor, shard: Shard, is_main: bool) -> Shard:
    if value.ndim == 0:
        return Shard(value, (), (), is_owner=is_main)
    if key not in REDUCED:
        return replace(shard, data=value)
    reduced_dim = len(shard.global_shape) + REDUCED[key]
    # Boxes that differ only in the reduced dimension have the same means; the rank of the first one owns them.
    return Shard(
        value,
        _without(shard.global_shape, reduced_dim),
        _without(shard.offsets, reduced_dim),
        shard.is_expert,
        is_owner=shard.is_owner and shard.offsets[reduced_dim] == 0,
    )


def _without(sizes: tuple[int, ...], dim: int) -> tuple[int, ...]:
    return sizes[:dim] + sizes[dim + 1 :]
