"""States cut in several dimensions and flattened, as tensor, expert and data parallelism and ZeRO leave them."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from moe_train.checkpoint.fragments import fragment_shards
from moe_train.checkpoint.layout import Shard, ShardedState

SHAPES = {
    "experts.up": (4, 5, 6),  # experts, model width, hidden width
    "experts.down": (4, 6, 5),
    "heads": (8, 5),
    "vocabulary": (11, 5),  # of which two tensor ranks hold 6 and 5
    "norm": (5,),
}
TENSOR_DIM = {"experts.up": 2, "experts.down": 1, "heads": 0, "vocabulary": 0}
"""The dimension that tensor and expert tensor parallelism cut; the norm is whole on every tensor rank."""


def whole(name: str) -> Tensor:
    """The global tensor `name`."""
    seed = sum(name.encode())
    return torch.randn(SHAPES[name], generator=torch.Generator().manual_seed(seed))


def whole_on_one(rank: int) -> ShardedState:
    return {name: [_box(name)] for name in SHAPES}


def experts_on_two(rank: int) -> ShardedState:
    """Experts by their number, all else by rows."""
    return {name: [_cut(_box(name), 0, rank, 2)] for name in SHAPES}


def tensor_and_experts_on_four(rank: int) -> ShardedState:
    """Tensor 2, of which rank 0 owns the norm; experts in 2 x 2 slices."""
    return {
        name: [shard]
        for name, shard in _tensor_and_expert(rank % 2, 2, rank // 2, 2, dense_owner=rank < 2).items()
    }


def data_tensor_and_experts_on_eight(rank: int) -> ShardedState:
    """Data 4 x tensor 2; experts on replica 2 x expert 2 x expert tensor 2, cut along their width by replica."""
    data, replica = rank // 2, rank // 4
    held = _tensor_and_expert(rank % 2, 2, (rank // 2) % 2, 2)
    return {
        name: [_cut(shard, 1, replica, 2) if shard.is_expert else _cut(shard, 0, data, 4)]
        for name, shard in held.items()
    }


def flattened_on_four(rank: int) -> ShardedState:
    """All tensors in one row of elements, of which each rank has a quarter."""
    return _fragments({name: _box(name) for name in SHAPES}, rank, 4)


def flattened_behind_tensor_on_eight(rank: int) -> ShardedState:
    """Data 2 x tensor 2 x expert 2: what a tensor rank holds, in one row, of which each data rank has a half."""
    return _fragments(
        _tensor_and_expert(rank % 2, 2, (rank // 2) % 2, 2, dense_owner=rank // 2 % 2 == 0), rank // 4, 2
    )


LAYOUTS: dict[Callable[[int], ShardedState], int] = {
    whole_on_one: 1,
    experts_on_two: 2,
    tensor_and_experts_on_four: 4,
    flattened_on_four: 4,
    data_tensor_and_experts_on_eight: 8,
    flattened_behind_tensor_on_eight: 8,
}
"""Layout -> number of ranks."""


def _tensor_and_expert(
    tensor: int, num_tensor: int, expert: int, num_expert: int, dense_owner: bool = True
) -> dict[str, Shard]:
    held = {}
    for name in SHAPES:
        shard = _box(name)
        if shard.is_expert:
            shard = _cut(shard, 0, expert, num_expert)
        if name in TENSOR_DIM:
            shard = _cut(shard, TENSOR_DIM[name], tensor, num_tensor)
        is_owner = shard.is_expert or (dense_owner and (name in TENSOR_DIM or tensor == 0))
        held[name] = Shard(shard.data, shard.global_shape, shard.offsets, shard.is_expert, is_owner)
    return held


def _fragments(held: dict[str, Shard], rank: int, size: int) -> ShardedState:
    total = sum(shard.data.numel() for shard in held.values())
    start, stop = total * rank // size, total * (rank + 1) // size
    return {name: list(_fragment(shard, first, start, stop)) for name, shard, first in _placed(held)}


def _placed(held: dict[str, Shard]) -> Iterator[tuple[str, Shard, int]]:
    first = 0
    for name, shard in held.items():
        yield name, shard, first
        first += shard.data.numel()


def _fragment(shard: Shard, first: int, start: int, stop: int) -> tuple[Shard, ...]:
    low = min(max(start - first, 0), shard.data.numel())
    high = min(max(stop - first, 0), shard.data.numel())
    return fragment_shards(shard, low, shard.data.reshape(-1)[low:high].clone(), shard.is_owner)


def _box(name: str) -> Shard:
    value = whole(name)
    return Shard(value, tuple(value.shape), (0,) * value.ndim, is_expert=name.startswith("experts"))


def _cut(shard: Shard, dim: int, rank: int, size: int) -> Shard:
    """Part `rank` of `size` along `dim`, as torch.chunk cuts: the last may be shorter, or empty."""
    step = math.ceil(shard.data.shape[dim] / size)
    first = min(rank * step, shard.data.shape[dim])
    offsets = tuple(at + first * (index == dim) for index, at in enumerate(shard.offsets))
    count = min(step, shard.data.shape[dim] - first)
    data = shard.data.narrow(dim, first, count).clone()
    return Shard(data, shard.global_shape, offsets, shard.is_expert, shard.is_owner)
