"""Draws initial values, as a function of (seed, parameter, expert): the same on every layout.

A rank draws only what it keeps of an expert tensor, expert by expert; a shared weight is drawn whole, one at a
time, and cut. So no rank ever holds all experts.
"""

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moe_train.initial import Constant, Initial, Normal, Orthogonal, OwnsWeights
from moe_train.random import generator_for


def initials(model: nn.Module, scale: float) -> dict[str, Initial]:
    """Returns how each parameter of a whole model begins, by name; `scale` is model.init_scale."""
    return {name: _initial(model, name, scale) for name, _ in model.named_parameters()}


def _initial(model: nn.Module, name: str, scale: float) -> Initial:
    owner, _, own_name = name.rpartition(".")
    initial = initial_of(model.get_submodule(owner), own_name)
    if isinstance(initial, Normal) and initial.scale is None:
        return replace(initial, scale=scale)
    return initial


def initial_of(module: nn.Module, name: str) -> Initial:
    """Returns how a parameter begins: as its module says, or as the models' embeddings, projections and norms do."""
    if isinstance(module, OwnsWeights):
        return module.initial(name)
    if isinstance(module, nn.RMSNorm | nn.LayerNorm) and name == "weight":
        return Constant(1.0)
    if isinstance(module, nn.Linear) and name == "weight":
        return Normal(fan_in=module.in_features)
    if isinstance(module, nn.Embedding):
        return Normal(fan_in=module.embedding_dim)  # a tied embedding counts as the output head
    raise TypeError(
        f"{type(module).__name__}.{name}: has no initial value; give the module a method initial(name) that returns a "
        "Normal, an Orthogonal or a Constant of moe_train/initial.py"
    )


def initial_value(
    seed: int,
    name: str,
    initial: Initial,
    global_shape: tuple[int, ...],
    offsets: tuple[int, ...] | None = None,
    shape: tuple[int, ...] | None = None,
) -> Float[Tensor, "..."]:
    """Returns the box of parameter `name` at `offsets` with `shape`, or all of it, in fp32 on the CPU."""
    offsets, shape = offsets or (0,) * len(global_shape), global_shape if shape is None else shape
    if isinstance(initial, Constant):
        return torch.full(shape, initial.value)
    if isinstance(initial, Orthogonal):
        return _cut(_orthogonal(seed, name, initial, global_shape), offsets, shape)
    if not initial.is_stacked:
        return _cut(_normal(seed, name, initial, global_shape), offsets, shape)
    experts = range(offsets[0], offsets[0] + shape[0])
    boxes = (
        _cut(_normal(seed, f"{name}.{expert}", initial, global_shape[1:]), offsets[1:], shape[1:])
        for expert in experts
    )
    return torch.stack(list(boxes)) if experts else torch.empty(shape)


def _normal(seed: int, name: str, initial: Normal, shape: tuple[int, ...]) -> Tensor:
    assert initial.scale is not None, name
    std = math.sqrt(initial.scale / initial.fan_in)
    value = torch.empty(shape)
    return torch.nn.init.trunc_normal_(
        value, std=std, a=-2 * std, b=2 * std, generator=generator_for(seed, name)
    )


def _orthogonal(seed: int, name: str, initial: Orthogonal, shape: tuple[int, ...]) -> Tensor:
    """Makes an orthogonal matrix in fp64, so that ranks agree in fp32."""
    value = torch.empty(shape, dtype=torch.float64)
    return torch.nn.init.orthogonal_(value, initial.gain, generator=generator_for(seed, name)).float()


def _cut(value: Tensor, offsets: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    for dim, (start, size) in enumerate(zip(offsets, shape, strict=True)):
        value = value.narrow(dim, start, size)
    return value.clone()
