"""Computes the norm of many gradients, exact to fp32 rounding whatever their sizes.

A single fp32 sum over a large tensor loses what it adds: over 8 Mi elements torch's own vector norm is 2e-4 too small,
and the error depends on how the tensor is cut into shards. Norms of short runs are exact to rounding, are computed by
all threads at once, and are summed in float64.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float64, Shaped
from torch import Tensor

from moe_train.parallel.world import World

RUN = 1024
"""Number of elements of a run."""


def norm_and_sums(owned: Iterable[Tensor], values: Tensor, world: World) -> tuple[float, list[float]]:
    """Returns the norm of the gradients that all ranks own, and sums of `values` [N] over them, by one reduction.

    Each element of a gradient must be owned by one rank. Collective.
    """
    tensors = list(owned)
    local = squared_norm(tensors) if tensors else values.new_zeros((), dtype=torch.float64)
    squared, *sums = world.everyone.total(torch.cat([local.reshape(1).to(values.device), values.double()]))
    return squared**0.5, sums


def squared_norm(tensors: Iterable[Tensor]) -> Tensor:
    """Returns the float64 scalar sum of squares of all elements of `tensors`, at least one tensor."""
    return torch.stack([_squared_norm(tensor) for tensor in tensors]).sum()


def squared_norms(rows: Shaped[Tensor, "R ..."]) -> Float64[Tensor, " R"]:
    """Returns the sum of squares of each row's elements."""
    flat = rows.detach().flatten(1)
    whole = flat.shape[1] // RUN * RUN
    runs = torch.linalg.vector_norm(flat[:, :whole].unflatten(1, (-1, RUN)), dim=2)
    rest = torch.linalg.vector_norm(flat[:, whole:], dim=1)
    return runs.double().square().sum(1) + rest.double().square()


def _squared_norm(tensor: Tensor) -> Tensor:
    flat = tensor.detach().reshape(-1)
    whole = flat.numel() // RUN * RUN
    runs = torch.linalg.vector_norm(flat[:whole].view(-1, RUN), dim=1)
    rest = torch.linalg.vector_norm(flat[whole:])
    return runs.double().square().sum() + rest.double().square()
