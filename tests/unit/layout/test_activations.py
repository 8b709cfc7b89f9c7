"""What `moe-train show` says that a forward pass keeps, against the live tensors of one that ran or was traced."""

from contextlib import ExitStack

import pytest
from test_layout import MODELS, SEQUENCE, T5, TENSOR
from tiny_model import global_batch, one_worker, tiny_recipe, vocabulary
from torch._subclasses.fake_tensor import FakeTensorMode

from moe_train.config.layout import plan_of
from moe_train.config.resolve import spec_of
from moe_train.config.schema import Recipe
from moe_train.data.batch import Batch
from moe_train.layout.activations import saved_bytes
from moe_train.layout.gathered import gathered_at_most
from moe_train.layout.shapes import units
from moe_train.layout.text import kept_of, work_of
from moe_train.parallel.mesh import Mesh
from moe_train.planner.assumed import AssumedValues
from moe_train.planner.batches import planned_batch
from moe_train.planner.live import LiveBytes
from moe_train.planner.trace import alone, fake_group, plan_dispatch
from moe_train.planner.watch import Watch
from moe_train.step.training_step import TrainingStep

WIDE = (
    "model.d_model=64",
    "model.d_ff=192",
    "moe.d_ff=160",
    "model.num_heads=4",
    "model.num_layers=3",
    "moe.every=2",
    "moe.dispatch.kind=all_to_all",
    "moe.capacity_factor=null",
    "moe.router.jitter=0",
    "data.sequence_length=64",
)
EXPERT, BF16 = "parallel.expert=2", "precision=bf16"
RECOMPUTED = [f"engine.recompute={parts}" for parts in ("experts", "attention", "block")]
LAYOUTS = [
    (2, (TENSOR, EXPERT)),
    (2, (*SEQUENCE, EXPERT, BF16)),
    (2, (*SEQUENCE, *T5, EXPERT, "engine.recompute=experts")),
    (2, (BF16, "engine.gather_dtype=bf16", "engine.recompute=attention")),
    (4, ("parallel.shard=2", EXPERT, "engine.recompute=block")),
]
MORE = [
    (workers, (*tensor, *model, *recompute, *precision))
    for workers, tensor in (
        (1, ()),
        (2, (TENSOR, EXPERT)),
        (2, (*SEQUENCE, EXPERT)),
        (4, ("engine.offload=true",)),
    )
    for model in ((), T5, ("moe.shared_experts=1", "model.activation=swiglu", "model.dropout=0.1"))
    for recompute in ((), *((each,) for each in RECOMPUTED))
    for precision in ((), (BF16,))
]


class StoppedError(Exception):
    """An update has come to its backward pass."""


def expected(recipe: Recipe, workers: int) -> int:
    plan = plan_of(recipe.parallel, workers)
    work, parts = work_of(recipe, plan), units(spec_of(recipe))
    kept = saved_bytes(spec_of(recipe), plan, work.sequences, kept_of(recipe, plan), work.passes)
    return kept + gathered_at_most(parts, plan, recipe.engine)


def live_before_backward(step: TrainingStep, batch: Batch, live: LiveBytes) -> int:
    before, seen = live.now, []

    def stop(*_: object) -> None:
        seen.append(live.now - before)
        raise StoppedError

    step.engine.backward = stop  # type: ignore[method-assign]
    with pytest.raises(StoppedError):
        step.update([batch], 0, False)
    return seen[0]


@pytest.mark.parametrize("overrides", MODELS, ids=" ".join)
def test_activations_are_those_that_live_before_the_backward_pass(overrides):
    recipe, live = tiny_recipe(*WIDE, *overrides), LiveBytes()
    with Watch(live):
        step = TrainingStep.build(recipe, one_worker(), vocabulary(recipe))
        seen = live_before_backward(step, global_batch(recipe, 0), live)
    assert expected(recipe, 1) == pytest.approx(seen, rel=0.05)


@pytest.mark.parametrize(
    ("workers", "overrides"),
    [
        *LAYOUTS,
        *(pytest.param(*each, marks=pytest.mark.distributed_exhaustive) for each in MORE),
    ],
    ids=lambda value: value if isinstance(value, int) else " ".join(value),
)
def test_activations_of_a_layout_are_those_of_its_trace(workers, overrides):
    recipe, live = tiny_recipe(*WIDE, *overrides), LiveBytes()
    plan = plan_of(recipe.parallel, workers)
    batch = planned_batch(recipe, work_of(recipe, plan).sequences)
    with fake_group(workers), ExitStack() as modes:
        mesh = Mesh.build(plan, alone(workers))
        fake = modes.enter_context(FakeTensorMode())
        assumed = modes.enter_context(AssumedValues())
        modes.enter_context(live.following_resizes())
        modes.enter_context(Watch(live))
        step = TrainingStep.build(recipe, mesh, vocabulary(recipe))
        plan_dispatch(step, recipe, 1.0)
        assumed.is_building = False
        seen = live_before_backward(step, batch.each(fake.from_tensor), live)
    assert expected(recipe, workers) == pytest.approx(seen, rel=0.05)
