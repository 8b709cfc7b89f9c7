"""Initial values, as a function of (seed, parameter, expert): the same on every layout.

A rank draws only what it keeps of an expert tensor, expert by expert; a shared weight is drawn whole, one at a
time, and cut. So no rank ever holds all experts.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from moe_train.random import generator_for


def initial_value(
    name: str,
    global_shape: tuple[int, ...],
    offsets: tuple[int, ...],
    shape: tuple[int, ...],
    is_expert: bool,
    seed: int,
    scale: float,
    vector: float = 1.0,
    gain: float | None = None,
) -> Float[Tensor, "..."]:
    """The box of parameter `name` that starts at `offsets` and has `shape`, in fp32 on the CPU.

    Vectors, such as norm weights, are `vector`. Matrices are drawn from a normal truncated at 2 standard deviations,
    with std = sqrt(scale / fan_in)   # Switch (2101.03961) sec. 2.4; the tied embedding counts as the output head.
    With a scale of 0 they are 0. With a `gain` a shared matrix is orthogonal instead, times that.
    """
    if is_expert:
        first, count = offsets[0], shape[0]
        experts = [
            _drawn(f"{name}.{expert}", global_shape[1:], fan_in=global_shape[1], seed=seed, scale=scale)
            for expert in range(first, first + count)
        ]
        boxes = [_cut(expert, offsets[1:], shape[1:]) for expert in experts]
        return torch.stack(boxes) if boxes else torch.empty(shape)
    if len(global_shape) == 1:
        return torch.full(shape, vector)
    if gain is not None:
        return _cut(_orthogonal(name, global_shape, seed, gain), offsets, shape)
    return _cut(_drawn(name, global_shape, _fan_in(name, global_shape), seed, scale), offsets, shape)


def _fan_in(name: str, shape: tuple[int, ...]) -> int:
    """Inputs of one output: nn.Linear stores [out, in], embeddings [entries, width], routers [width, experts]."""
    return shape[0] if name.endswith("router.weight") else shape[1]


def _drawn(name: str, shape: tuple[int, ...], fan_in: int, seed: int, scale: float) -> Tensor:
    if scale == 0:
        return torch.zeros(shape)
    std = math.sqrt(scale / fan_in)
    value = torch.empty(shape)
    return torch.nn.init.trunc_normal_(
        value, std=std, a=-2 * std, b=2 * std, generator=generator_for(seed, name)
    )


def _orthogonal(name: str, shape: tuple[int, ...], seed: int, gain: float) -> Tensor:
    """Orthonormal rows or columns, whichever are fewer, times `gain`; made in fp64, so that ranks agree in fp32."""
    value = torch.empty(shape, dtype=torch.float64)
    return torch.nn.init.orthogonal_(value, gain, generator=generator_for(seed, name)).float()


def _cut(value: Tensor, offsets: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    for dim, (start, size) in enumerate(zip(offsets, shape, strict=True)):
        value = value.narrow(dim, start, size)
    return value.clone()
