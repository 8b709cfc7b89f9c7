"""Lists the collectives of an update that follow from the layout: what FSDP2 gathers and reduces, and rows of experts.

Those of ZeRO are in `zero.py`, those of tensor parallelism in `tensor.py`. A few sums of numbers come on top: gradient
norm, losses over the whole batch, loads.
"""

from collections.abc import Iterator

from moe_train.config.kinds.deepspeed import DeepSpeedEngineConfig
from moe_train.config.kinds.engine import NativeEngineConfig, OwnEngineConfig
from moe_train.config.plan import ParallelPlan
from moe_train.config.spec import ModelSpec, MoESpec
from moe_train.layout.exchange import Exchange, Work, together
from moe_train.layout.gathered import gathered_parts
from moe_train.layout.held import FP32
from moe_train.layout.rows import expected_rows
from moe_train.layout.shapes import Unit
from moe_train.layout.tensor import TensorParallel
from moe_train.layout.zero import reductions

COUNT = 8
"""Bytes of the number of rows to an expert, which goes before the rows."""

BESIDE = {"none": "rows", "shared": "rows, beside shared experts", "halves": "rows, in overlapping halves"}
"""Describes rows by `engine.overlap`."""


def exchanges(
    spec: ModelSpec, parts: list[Unit], plan: ParallelPlan, engine: OwnEngineConfig, work: Work
) -> list[Exchange]:
    """Returns the collectives of one rank in one update."""
    every: list[Exchange] = []
    if isinstance(engine, NativeEngineConfig):
        for unit in parts:
            every += _of_unit(unit, plan, engine, work)
    elif isinstance(engine, DeepSpeedEngineConfig):
        every += reductions(parts, plan, engine, work)
    if plan.tensor > 1:
        every += tensor_parallel(spec, plan, engine, work).exchanges()
    if plan.exchange > 1:
        for stack in spec.stacks:
            for moe in stack.moe:
                every += of_rows(moe, stack.length, plan, engine, work)
    return together(every)


def tensor_parallel(
    spec: ModelSpec, plan: ParallelPlan, engine: OwnEngineConfig, work: Work
) -> TensorParallel:
    """Returns what knows the collectives of tensor groups."""
    to_its_end = isinstance(engine, NativeEngineConfig) and engine.gather_dtype is not None
    return TensorParallel(spec, plan, work, engine.recompute, to_its_end, engine.overlap != "none")


def _of_unit(unit: Unit, plan: ParallelPlan, engine: NativeEngineConfig, work: Work) -> Iterator[Exchange]:
    """Yields what FSDP2 gathers and reduces of a unit."""
    degree = plan.replica_shards if unit.is_experts else plan.data_shards
    copies = (plan.replicas if unit.is_experts else plan.data) // degree
    if degree == copies == 1:
        return
    axis, what = ("replica", "experts") if unit.is_experts else ("data", "all but experts")
    is_freed = engine.reshard_after_forward and not unit.is_around
    gathers = 2 * work.backward_passes + work.counting_passes if is_freed else work.microbatches
    reductions = work.microbatches if engine.reduce_each_microbatch else 1
    size = 2 if engine.reduce_dtype else FP32
    for part in gathered_parts(unit, plan, engine):
        if degree > 1:
            yield Exchange("all_gather", axis, f"weights of {what}", gathers, gathers * part.bytes)
            reduced = reductions * size * part.elements
            yield Exchange("reduce_scatter", axis, f"gradients of {what}", reductions, reduced)
        if copies > 1:
            held = size * part.elements // degree
            yield Exchange("all_reduce", f"{axis}_copy", f"gradients of {what}", 1, held)


def of_rows(
    moe: MoESpec, length: int, plan: ParallelPlan, engine: OwnEngineConfig, work: Work
) -> Iterator[Exchange]:
    """Yields a layer's exchange: rows go to their experts and back, and their gradients likewise.

    In halves with `engine.overlap=halves`, whose numbers of rows go together.
    """
    tokens = work.sequences * length // plan.tensor
    rows = expected_rows(moe, length).sent(tokens) * plan.expert_tensor
    runs_again, parts = engine.recompute in ("experts", "block"), 2 if engine.overlap == "halves" else 1
    counts = work.backward_passes * (1 + runs_again) + work.counting_passes
    moves = work.backward_passes * (4 + 2 * runs_again) + 2 * work.counting_passes
    width = (2 if work.is_bf16 else FP32) * moe.d_model
    size = parts * COUNT * moe.num_experts * plan.expert_tensor
    yield Exchange("all_to_all", "exchange", "numbers of rows", counts, counts * size)
    yield Exchange("all_to_all", "exchange", BESIDE[engine.overlap], parts * moves, moves * rows * width)
