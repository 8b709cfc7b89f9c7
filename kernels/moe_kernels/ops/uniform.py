"""Defines moe_kernels::uniform: random numbers as a hash of keys and positions, the same bits on every device.

B streams of N numbers.
"""

import torch
from torch import Tensor

from moe_kernels.errors import KernelError
from moe_kernels.launch import launch
from moe_kernels.reference import uniform as reference
from moe_kernels.select import choose


def uniform(low: Tensor, high: Tensor, count: int) -> Tensor:
    """Returns [B, N] float32 in [0, 1), multiples of 2^-24: number i of stream b depends only on low[b], high[b], i.

    `low` and `high` [B] int32 are the streams' keys. Raises KernelError where they are something else.
    """
    if low.dtype != torch.int32 or high.dtype != torch.int32 or low.ndim != 1 or low.shape != high.shape:
        raise KernelError(
            f"keys are {low.dtype} {list(low.shape)} and {high.dtype} {list(high.shape)}; give both as int32 of one "
            "and the same length"
        )
    return _uniform(low, high, count)


@torch.library.custom_op("moe_kernels::uniform", mutates_args=())
def _uniform(low: Tensor, high: Tensor, count: int) -> Tensor:
    library = choose(low.device.type).library
    if library is None:
        return reference.uniform(low, high, count)
    low, high = low.contiguous(), high.contiguous()
    values = torch.empty(len(low), count, device=low.device)
    sizes = (len(low), count, torch.get_num_threads())
    launch(library, "moe_uniform", low.device, *sizes, low, high, values)
    return values


@_uniform.register_fake
def _(low: Tensor, high: Tensor, count: int) -> Tensor:
    return torch.empty(len(low), count, device=low.device)
