"""A small state in every layout a checkpoint must carry: cut in two dimensions, unevenly, replicated."""

import hashlib
from dataclasses import replace

import torch

from moe_train.checkpoint.layout import Shard, ShardedState, alone, boxes_of

EXPERTS, ROWS, COLUMNS = 4, 5, 3
SHAPES = {
    "experts.up": ((EXPERTS, ROWS, COLUMNS), torch.float32),
    "experts.up.exp_avg": ((EXPERTS, ROWS, COLUMNS), torch.float32),
    "dense.weight": ((7, 3), torch.bfloat16),
    "counts": ((6,), torch.int64),
    "step": ((), torch.float32),
}


def whole(name: str, seed: int = 0) -> torch.Tensor:
    """The global tensor `name`, different for each seed and name."""
    shape, dtype = SHAPES[name]
    key = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:4], "big")
    values = torch.randn(shape, generator=torch.Generator().manual_seed(key), dtype=torch.float64)
    return (values * 100).to(dtype)


def _cut(name: str, seed: int, ranges: list[tuple[int, int]], is_expert: bool) -> Shard:
    part = whole(name, seed)[tuple(slice(low, high) for low, high in ranges)].clone()
    return Shard(part, SHAPES[name][0], tuple(low for low, _ in ranges), is_expert)


def _span(rank: int, parts: int, extent: int) -> tuple[int, int]:
    """As torch.chunk cuts: the last parts may be shorter, or empty."""
    size = -(-extent // parts)
    return min(rank * size, extent), min((rank + 1) * size, extent)


def state(rank: int, size: int, expert: int, seed: int = 0) -> ShardedState:
    """What `rank` of `size` holds: experts over `expert` ranks, their rows over replicas, others over all."""
    experts, rows = _span(rank % expert, expert, EXPERTS), _span(rank // expert, size // expert, ROWS)
    shards = {
        **{
            name: _cut(name, seed, [experts, rows, (0, COLUMNS)], True)
            for name in ("experts.up", "experts.up.exp_avg")
        },
        "dense.weight": _cut("dense.weight", seed, [_span(rank, size, 7), (0, 3)], False),
        "counts": _cut("counts", seed, [_span(rank, size, 6)], False),
        "step": replace(_cut("step", seed, [], False), is_owner=rank == 0),
    }
    return alone(shards)


def emptied(like: ShardedState) -> ShardedState:
    """The same layout with every value -1."""
    return {
        name: [replace(shard, data=torch.full_like(shard.data, -1)) for shard in shards]
        for name, shards in like.items()
    }


def equal(one: ShardedState, other: ShardedState) -> bool:
    """Whether both hold the same boxes with the same bits."""
    return all(
        name == other_name and box.offsets == twin.offsets and torch.equal(box.data, twin.data)
        for (name, box), (other_name, twin) in zip(boxes_of(one), boxes_of(other), strict=True)
    )
