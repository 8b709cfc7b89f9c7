"""Checks that every element of a global tensor is written exactly once.

A save is refused, and a checkpoint is bad, if boxes overlap, leave a hole or exceed the tensor, as they would if
experts were numbered per rank or saved by one rank only.
"""

import math
from collections.abc import Sequence

import numpy as np

Extent = tuple[Sequence[int], Sequence[int]]
"""Offsets and shape of a box."""


def coverage_finding(shape: Sequence[int], boxes: Sequence[Extent]) -> str | None:
    """Returns the problem with `boxes` as a partition of a tensor of `shape`, or None."""
    if any(len(offsets) != len(shape) or len(size) != len(shape) for offsets, size in boxes):
        return f"has a box with another number of dimensions than its shape {tuple(shape)}"
    count, dims = len(boxes), len(shape)
    starts = np.array([offsets for offsets, _ in boxes], dtype=np.int64).reshape(count, dims)
    ends = starts + np.array([size for _, size in boxes], dtype=np.int64).reshape(count, dims)
    if (starts < 0).any() or (ends <= starts).any() or (ends > np.array(shape, dtype=np.int64)).any():
        return f"has a box that is empty or exceeds its shape {tuple(shape)}"
    for box in range(count):
        overlapping = ((starts < ends[box]) & (ends > starts[box])).all(axis=1)
        if overlapping.sum() > 1:
            other = next(int(index) for index in np.flatnonzero(overlapping) if index != box)
            places = f"{tuple(boxes[box][0])} and {tuple(boxes[other][0])}"
            return f"has elements that are written twice, by the boxes at {places}"
    covered, total = sum(math.prod(size) for _, size in boxes), math.prod(shape)
    if covered != total:
        return f"has {total - covered} of {total} elements that no rank writes"
    return None
