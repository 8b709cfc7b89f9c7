"""Counts how often each id occurs, in a tensor of a size that is known beforehand.

`torch.bincount` makes one as large as the largest id: on CUDA the host waits for that, and neither a compiler nor a
trace without values knows the size. The counts are the same integers.
N ids, E possible ids.
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def counts_of(
    ids: Int[Tensor, " N"], number: int, is_counted: Bool[Tensor, " N"] | None = None
) -> Int[Tensor, " E"]:
    """Returns how often each of 0 ... `number` - 1 occurs; only where `is_counted` is true, if it is given."""
    one = torch.ones((), dtype=torch.int64, device=ids.device).expand(ids.shape)
    values = one if is_counted is None else is_counted.long()
    return values.new_zeros(number).scatter_add_(0, ids.long(), values)
