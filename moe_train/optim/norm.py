"""Computes the squared norm of many gradients, exact to fp32 rounding whatever their sizes.

A single fp32 sum over a large tensor loses what it adds: over 8 Mi elements torch's own vector norm is 2e-4 too small,
and the error depends on how the tensor is cut into shards. Norms of short runs are exact to rounding, are computed by
all threads at once, and are summed in float64.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

RUN = 1024
"""Number of elements of a run."""


def squared_norm(tensors: Iterable[Tensor]) -> Tensor:
    """Returns the float64 scalar sum of squares of all elements of `tensors`, at least one tensor."""
    return torch.stack([_squared_norm(tensor) for tensor in tensors]).sum()


def _squared_norm(tensor: Tensor) -> Tensor:
    flat = tensor.detach().reshape(-1)
    whole = flat.numel() // RUN * RUN
    runs = torch.linalg.vector_norm(flat[:whole].view(-1, RUN), dim=1)
    rest = torch.linalg.vector_norm(flat[whole:])
    return runs.double().square().sum() + rest.double().square()
