"""Describes ranges of flattened tensors as boxes, for optimizers that flatten parameters and cut them anywhere.

A range may begin and end inside a row, and inside a row of that row: the rest of the rows that it cuts and the whole
rows between them are boxes, at most 2 n - 1 for n dimensions.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

from jaxtyping import Shaped
from torch import Tensor

from moe_train.checkpoint.coverage import Extent
from moe_train.checkpoint.layout import Shard


def boxes_of_range(shape: tuple[int, ...], start: int, stop: int) -> Iterator[Extent]:
    """Yields the boxes (offsets, size) of elements `start` to `stop` - 1 of a flattened tensor, in their order.

    Each box is contiguous in the flattened tensor, so the boxes are consecutive pieces of the range.
    """
    if start >= stop:
        return
    if len(shape) <= 1:
        yield ((start,), (stop - start,)) if shape else ((), ())
        return
    row = math.prod(shape[1:])
    first, last = -(-start // row), stop // row  # the whole rows are first to last - 1
    if first > last:  # the range lies inside of row `last`
        yield from _in_row(shape, last, start - last * row, stop - last * row)
        return
    yield from _in_row(shape, first - 1, start - (first - 1) * row, row)
    if first < last:
        yield (first, *(0 for _ in shape[1:])), (last - first, *shape[1:])
    yield from _in_row(shape, last, 0, stop - last * row)


def fragment_shards(
    whole: Shard, start: int, values: Shaped[Tensor, " n"], is_owner: bool
) -> tuple[Shard, ...]:
    """Returns the boxes that `values` are, the n elements from `start` on of the flattened box `whole`.

    `whole` says where the elements stand in the global tensor: its data gives the shape only. The data of the boxes
    are views, so loading writes into `values`, which is contiguous. Raises ValueError if the range exceeds `whole`.
    """
    shape, stop = tuple(whole.data.shape), start + values.numel()
    if start < 0 or stop > math.prod(shape):
        raise ValueError(f"elements {start} to {stop - 1} exceed a box of shape {shape}")
    shards, taken = [], 0
    for offsets, size in boxes_of_range(shape, start, stop):
        piece = values[taken : taken + math.prod(size)].view(*size)
        taken += piece.numel()
        place = tuple(at + offset for at, offset in zip(whole.offsets, offsets, strict=True))
        shards.append(replace(whole, data=piece, offsets=place, is_owner=is_owner))
    return tuple(shards)


def _in_row(shape: tuple[int, ...], row: int, start: int, stop: int) -> Iterator[Extent]:
    """Yields the boxes of a range of the flattened row number `row`; none if it is empty."""
    for offsets, size in boxes_of_range(shape[1:], start, stop):
        yield (row, *offsets), (1, *size)
