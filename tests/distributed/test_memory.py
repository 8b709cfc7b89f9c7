"""What `show` and `plan` say of memory and collectives, against the live tensors and collectives of four workers.

Live tensors are counted by a dispatch mode on the processes themselves: between updates, and where the backward pass
begins. BASE sends every expert as many rows as another, so that rows are those that are expected.
"""

import pytest
from gloo_workers import run_workers
from measured_update import Measured, measure
from same_traffic import assert_same_traffic
from tiny_model import tiny_recipe

from moe_train.config.kinds.deepspeed import DeepSpeedEngineConfig
from moe_train.config.kinds.engine import NativeEngineConfig
from moe_train.config.layout import plan_of
from moe_train.config.resolve import spec_of
from moe_train.layout.activations import saved_bytes
from moe_train.layout.exchanges import exchanges
from moe_train.layout.gathered import gathered_at_most
from moe_train.layout.held import held
from moe_train.layout.shapes import units
from moe_train.layout.text import kept_of, work_of
from moe_train.layout.zero import held_by_zero
from moe_train.planner.trace import trace

pytestmark = [
    pytest.mark.distributed_exhaustive,
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning", "ignore::UserWarning"
    ),  # of megatron-core, as it is imported
]

WIDE = (
    "moe.router.kind=base",
    "moe.capacity_factor=null",
    "moe.dispatch.kind=all_to_all",
    "moe.every=2",
    "model.num_layers=4",
    "model.d_model=64",
    "model.num_heads=4",
    "model.d_ff=192",
    "moe.d_ff=160",
    "data.sequence_length=64",
    "data.global_batch=8",
    "optim.kind=adamw",
)
SMALL_BUCKETS = "engine.config={zero_optimization: {reduce_bucket_size: 300000}}"
EXPERT, TENSOR, SEQUENCE = "parallel.expert=2", "parallel.tensor=2", "parallel.sequence=true"
PEAK_IF_CAST = 0.1
"""Where weights are gathered in bf16, a trace has seen 6% less at once than a run."""


def zero(stage: int) -> tuple[str, ...]:
    return ("engine.kind=deepspeed", f"engine.stage={stage}", *((SMALL_BUCKETS,) if stage else ()))


NATIVE = [
    (EXPERT,),
    ("parallel.expert=4", "engine.reshard_after_forward=true", "data.micro_batch=1"),
    ("parallel.shard=2", EXPERT, "engine.recompute=experts"),
    (EXPERT, "engine.recompute=attention", "precision=bf16", "engine.gather_dtype=bf16"),
    (EXPERT, "engine.recompute=block", "data.micro_batch=1"),
]
TENSOR_PARALLEL = [
    # Each with a process group of its own: torch caches a mesh for others of the same ranks, whose groups have no name.
    (TENSOR, EXPERT, SEQUENCE),
    (TENSOR, EXPERT, "engine.recompute=block", "moe.shared_experts=1"),
]
ZERO = [
    (EXPERT, *zero(0)),
    (EXPERT, *zero(1), "data.micro_batch=1"),
    (EXPERT, *zero(2)),
    ("parallel.expert=4", *zero(2), "data.micro_batch=1"),
    (EXPERT, *zero(2), "engine.recompute=block", "precision=bf16"),
]
ZERO_TENSOR = [(TENSOR, EXPERT, *zero(stage)) for stage in (0, 2)]


def assert_as_foreseen(case: tuple[str, ...], ran: Measured) -> None:
    recipe = tiny_recipe(*WIDE, *case)
    traced = trace(recipe, 4)
    foreseen, counted = traced.collectives.rows(), ran.moved.rows()
    assert [row for row in foreseen if row not in counted] == [], counted
    assert [row for row in counted if row not in foreseen] == [], foreseen
    assert traced.parameter_bytes == ran.parameter_bytes
    assert traced.gradient_bytes == ran.gradient_bytes
    assert traced.optimizer_bytes == ran.optimizer_bytes
    plan, parts, engine = plan_of(recipe.parallel, 4), units(spec_of(recipe)), recipe.engine
    work = work_of(recipe, plan)
    assert_same_traffic(exchanges(spec_of(recipe), parts, plan, engine, work), ran.moved.rows())
    of_zero = isinstance(engine, DeepSpeedEngineConfig)
    own = (
        held_by_zero(parts, plan, engine, recipe.optim) if of_zero else held(parts, plan, recipe.optim)
    ).values()
    assert sum(part.parameters for part in own) == pytest.approx(ran.parameter_bytes, rel=0.05)
    assert sum(part.optimizer for part in own) == pytest.approx(ran.optimizer_bytes, rel=0.05)
    if not (of_zero and engine.stage):
        assert sum(part.gradients for part in own) == pytest.approx(ran.gradient_bytes, rel=0.05)
    between = sum(part.parameters + part.optimizer for part in own)
    kept = saved_bytes(spec_of(recipe), plan, work.sequences, kept_of(recipe, plan), work.passes)
    if not of_zero:
        kept += gathered_at_most(parts, plan, engine)
    assert between + kept == pytest.approx(ran.before_backward_bytes, rel=0.05)
    is_lower = isinstance(engine, NativeEngineConfig) and engine.gather_dtype is not None
    assert traced.peak_bytes == pytest.approx(ran.peak_bytes, rel=PEAK_IF_CAST if is_lower else 0.05)


@pytest.mark.parametrize(
    "cases",
    [NATIVE, ZERO, *([case] for case in (*TENSOR_PARALLEL, *ZERO_TENSOR))],
    ids=lambda cases: cases[0][-1],
)
def test_memory_and_collectives_are_those_that_were_foreseen(cases):
    for ran in run_workers(4, measure, *((*WIDE, *case) for case in cases), timeout_s=500)[:1]:
        for case, measured in zip(cases, ran, strict=True):
            try:
                assert_as_foreseen(case, measured)
            except AssertionError as error:
                raise AssertionError(f"{' '.join(case)}: {error}") from error
