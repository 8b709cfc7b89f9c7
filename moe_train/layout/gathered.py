"""Says what FSDP2 gathers of a unit, and in which precision: with `engine.gather_dtype` parts of a block by themselves.

`distribute/data.py` decides which parts: those whose weights only products in bf16 read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from moe_train.config.kinds.engine import NativeEngineConfig
from moe_train.config.plan import ParallelPlan
from moe_train.layout.held import FP32, shard_shape
from moe_train.layout.shapes import Unit


@dataclass(frozen=True)
class Gathered:
    """Describes weights that are gathered in one collective."""

    elements: int
    """Each parameter padded to a multiple of the ranks that share it."""
    bytes: int


def gathered_parts(unit: Unit, plan: ParallelPlan, engine: NativeEngineConfig) -> Iterator[Gathered]:
    """Yields what is gathered of a unit, one entry for each collective."""
    degree = plan.replica_shards if unit.is_experts else plan.data_shards
    elements: dict[str, int] = {}
    for parameter in unit.parameters:
        part = parameter.read_in_bf16_by if engine.gather_dtype else ""
        padded = degree * prod(shard_shape(parameter, unit.is_experts, plan))
        elements[part] = elements.get(part, 0) + padded
    for part, number in elements.items():
        yield Gathered(number, (2 if part else FP32) * number)


def gathered_at_most(parts: list[Unit], plan: ParallelPlan, engine: NativeEngineConfig) -> int:
    """Returns the bytes of gathered weights: of all units, or of two blocks beside what stands around them.

    FSDP2 copies what it holds even where no other worker has a part of it.
    """
    holds_experts = plan.replicas > 1 or (engine.offload and plan.data > 1)
    shared = [unit for unit in parts if (holds_experts if unit.is_experts else plan.data > 1)]
    sizes = [(unit, sum(part.bytes for part in gathered_parts(unit, plan, engine))) for unit in shared]
    if engine.reshard_after_forward:
        of_blocks = sorted((size for unit, size in sizes if not unit.is_around), reverse=True)
        return sum(size for unit, size in sizes if unit.is_around) + sum(of_blocks[:2])
    return sum(size for _, size in sizes)
