"""Lists the collectives of an update that follow from the layout: what FSDP2 gathers and reduces, and rows of experts.

They are the native engine's. A few sums of numbers come on top (gradient norm, losses over the whole batch, loads),
and those of tensor parallelism, which `moe-train plan` counts. Bytes are what one rank puts in or gets out, whichever
is more.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from moe_train.config.kinds.engine import NativeEngineConfig
from moe_train.config.plan import ParallelPlan
from moe_train.config.spec import ModelSpec, MoESpec
from moe_train.layout.held import FP32, gathered_elements
from moe_train.layout.rows import expected_rows
from moe_train.layout.shapes import Unit

COUNT = 8
"""Bytes of the number of rows to an expert, which goes before the rows."""


@dataclass(frozen=True)
class Exchange:
    """Describes a collective that an update makes `number` times."""

    kind: str
    axis: str
    what: str
    number: int
    bytes: int
    """Of all of them."""


@dataclass(frozen=True)
class Work:
    """Describes what a rank does in an update."""

    microbatches: int
    passes: int
    sequences: int
    """Of a microbatch."""
    is_bf16: bool
    counting_passes: int = 0
    """Forward passes that count the loads of a batch before the first with a gradient."""


def exchanges(
    spec: ModelSpec, parts: list[Unit], plan: ParallelPlan, engine: NativeEngineConfig, work: Work
) -> list[Exchange]:
    """Returns the collectives of one rank in one update."""
    rows = [
        one
        for stack in spec.stacks
        for moe in stack.moe
        if plan.exchange > 1
        for one in _of_layer(moe, stack.length, plan, engine, work)
    ]
    weights = [one for unit in parts if _degree(unit, plan) > 1 for one in _of_unit(unit, plan, engine, work)]
    return _together([*weights, *rows])


def _degree(unit: Unit, plan: ParallelPlan) -> int:
    return plan.replica_shards if unit.is_experts else plan.data_shards


def _of_unit(unit: Unit, plan: ParallelPlan, engine: NativeEngineConfig, work: Work) -> Iterator[Exchange]:
    axis, what = ("replica", "experts") if unit.is_experts else ("data", "all but experts")
    elements, passes = gathered_elements(unit, plan), work.microbatches * work.passes
    is_freed = engine.reshard_after_forward and not unit.is_around
    gathers = 2 * passes + work.counting_passes if is_freed else work.microbatches
    yield Exchange("all_gather", axis, f"weights of {what}", gathers, gathers * FP32 * elements)
    reductions = work.microbatches if engine.reduce_each_microbatch else 1
    size = 2 if engine.reduce_dtype else FP32
    yield Exchange("reduce_scatter", axis, f"gradients of {what}", reductions, reductions * size * elements)
    copies = (plan.replicas if unit.is_experts else plan.data) // _degree(unit, plan)
    if copies > 1:
        held = elements // _degree(unit, plan)
        yield Exchange(
            "all_reduce", f"{axis}_copy", f"gradients of {what}", reductions, reductions * size * held
        )


def _of_layer(
    moe: MoESpec, length: int, plan: ParallelPlan, engine: NativeEngineConfig, work: Work
) -> Iterator[Exchange]:
    """Yields a layer's exchange: rows go to their experts and back, and their gradients likewise.

    In halves with `engine.overlap=halves`, whose numbers of rows go together.
    """
    tokens = work.sequences * length // plan.tensor
    rows = expected_rows(moe, length).sent(tokens) * plan.expert_tensor
    runs_again, parts = engine.recompute in ("experts", "block"), 2 if engine.overlap == "halves" else 1
    passes = work.microbatches * work.passes
    counts = passes * (1 + runs_again) + work.counting_passes
    moves = passes * (4 + 2 * runs_again) + 2 * work.counting_passes
    width = (2 if work.is_bf16 else FP32) * moe.d_model
    size = parts * COUNT * moe.num_experts * plan.expert_tensor
    yield Exchange("all_to_all", "exchange", "numbers of rows", counts, counts * size)
    yield Exchange("all_to_all", "exchange", "rows", parts * moves, moves * rows * width)


def _together(every: list[Exchange]) -> list[Exchange]:
    """Returns one entry for all that differ in number and bytes alone, in the order in which they first come."""
    summed: dict[tuple[str, str, str], tuple[int, int]] = {}
    for one in every:
        key = one.kind, one.axis, one.what
        number, size = summed.get(key, (0, 0))
        summed[key] = number + one.number, size + one.bytes
    return [Exchange(*key, *numbers) for key, numbers in summed.items()]
