"""Counts what a rank holds between updates: elements and bytes of parameters, gradients and optimizer state, by part.

A rank is the first of every axis, whose share is never smaller than another's. Weights and gradients are fp32.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

from moe_train.config.kinds.optim import OptimConfig
from moe_train.config.plan import ParallelPlan
from moe_train.layout.shapes import Parameter, Unit

FP32 = 4
"""Bytes of a weight or a gradient."""


@dataclass(frozen=True)
class Held:
    """Holds the bytes of one part of the model on one rank."""

    parameters: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """Returns all bytes."""
        return self.parameters + self.gradients + self.optimizer


def held(units: Iterable[Unit], plan: ParallelPlan, optim: OptimConfig) -> Mapping[str, Held]:
    """Returns the bytes that a rank holds of each part of the model."""
    elements: Counter[str] = Counter()
    state: Counter[str] = Counter()
    for unit in units:
        for parameter in unit.parameters:
            shape = shard_shape(parameter, unit.is_experts, plan)
            own = parameter.shape[1:] if unit.is_experts else parameter.shape
            elements[parameter.part] += prod(shape)
            state[parameter.part] += optim.state_elements(shape, own)
    return {part: Held(FP32 * number, FP32 * number, FP32 * state[part]) for part, number in elements.items()}


def working_shape(parameter: Parameter, is_expert: bool, plan: ParallelPlan) -> tuple[int, ...]:
    """Returns the shape that a rank computes with: cut by tensor and expert parallelism, not by data parallelism."""
    shape = list(parameter.shape)
    degree = plan.expert_tensor if is_expert else plan.tensor
    if is_expert:
        shape[0] //= plan.expert
    if parameter.tensor_dim is not None:
        shape[parameter.tensor_dim] = -(-shape[parameter.tensor_dim] // degree)
    return tuple(shape)


def shard_shape(parameter: Parameter, is_expert: bool, plan: ParallelPlan) -> tuple[int, ...]:
    """Returns the shape that a rank keeps: FSDP2 cuts rows over `data`, and experts' width over `replica`."""
    shape = list(working_shape(parameter, is_expert, plan))
    dim, degree = (1, plan.replica_shards) if is_expert else (0, plan.data_shards)
    shape[dim] = -(-shape[dim] // degree)
    return tuple(shape)
