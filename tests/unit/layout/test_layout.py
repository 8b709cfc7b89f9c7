"""The arithmetic of `moe-train show` against a trace of the real update, and against live tensors."""

from collections import Counter

import pytest
from tiny_model import global_batch, one_worker, tiny_recipe, vocabulary

from moe_train.config.layout import plan_of
from moe_train.config.plan import ParallelPlan
from moe_train.config.resolve import spec_of
from moe_train.layout.activations import saved_bytes
from moe_train.layout.exchanges import exchanges
from moe_train.layout.held import held
from moe_train.layout.shapes import units
from moe_train.layout.text import layout, work_of
from moe_train.model.count import count
from moe_train.planner.live import LiveBytes
from moe_train.planner.trace import trace
from moe_train.planner.watch import Watch
from moe_train.step.training_step import TrainingStep

MOVING = ("all_gather", "reduce_scatter", "all_to_all")
LAYOUTS = [
    ("parallel.expert=2", "optim.kind=adamw", "data.micro_batch=1"),
    ("parallel.expert=4", "engine.reshard_after_forward=true", "engine.recompute=block", "precision=bf16"),
    ("parallel.expert=2", "engine.reshard_after_forward=true", "data.micro_batch=1"),
    ("optim.kind=adafactor", "optim.factor_from=8", "parallel.shard=2", "parallel.expert=2"),
    ("parallel.expert=4", "engine.overlap=halves", "engine.recompute=experts"),
    (
        "model.positions=learned",
        "model.tied_embeddings=false",
        "moe.shared_experts=1",
        "moe.activation=geglu",
    ),
]
MODELS = [
    (),
    ("precision=bf16",),
    ("precision=bf16", "model.activation=swiglu", "model.dropout=0.1"),
    ("model.activation=gelu", "model.dropout=0.1", "moe.shared_experts=1"),
    ("moe.router.kind=top_k", "moe.router.k=2", "moe.router.jitter=0.1"),
    ("moe.every=0", "model.positions=learned"),
    ("model.positions=relative",),
    ("model.positions=transformer_xl",),
    ("model.architecture=encoder_decoder", "objective.kind=span_corruption", "objective.sentinels=10"),
]


@pytest.mark.parametrize("overrides", LAYOUTS, ids=" ".join)
def test_what_is_held_and_moved_is_what_an_update_holds_and_moves(overrides):
    recipe = tiny_recipe("moe.capacity_factor=null", *overrides)
    plan, parts, traced = plan_of(recipe.parallel, 4), units(spec_of(recipe)), trace(recipe, 4)
    own = held(parts, plan, recipe.optim).values()
    assert sum(part.parameters for part in own) == traced.parameter_bytes
    assert sum(part.gradients for part in own) == traced.gradient_bytes
    assert sum(part.optimizer for part in own) == traced.optimizer_bytes
    numbers, sizes = Counter(), Counter()
    for one in exchanges(spec_of(recipe), parts, plan, recipe.engine, work_of(recipe, plan)):
        if one.kind in MOVING:
            numbers[one.kind] += one.number
            sizes[one.kind] += one.bytes
    rows = [row for row in traced.collectives.rows() if row["kind"] in MOVING]
    assert numbers == sum((Counter({row["kind"]: row["number"]}) for row in rows), Counter())
    assert sizes == sum((Counter({row["kind"]: row["bytes"]}) for row in rows), Counter())


@pytest.mark.parametrize("overrides", MODELS, ids=" ".join)
def test_the_units_of_a_model_have_its_parameters(overrides):
    spec = spec_of(tiny_recipe(*overrides))
    own = held(units(spec), ParallelPlan(), tiny_recipe().optim)
    parts = {part: number for part, number in count(spec).parts.items() if number}
    assert {part: one.parameters // 4 for part, one in own.items()} == parts


@pytest.mark.parametrize("overrides", MODELS, ids=" ".join)
def test_activations_are_those_that_live_before_the_backward_pass(overrides):
    wide = ("model.d_model=64", "model.d_ff=192", "moe.d_ff=160", "model.num_heads=4", "model.num_layers=3")
    recipe = tiny_recipe(
        *wide,
        "moe.every=2",
        "moe.dispatch.kind=all_to_all",
        "moe.capacity_factor=null",
        "moe.router.jitter=0",
        "data.sequence_length=64",
        *overrides,
    )
    live, batch = LiveBytes(), global_batch(recipe, 0)
    with Watch(live):
        step = TrainingStep.build(recipe, one_worker(), vocabulary(recipe))
        before, seen = live.now, []
        step.engine.backward = lambda *_: seen.append(live.now - before)
        with pytest.raises(AssertionError, match="has no gradient"):
            step.update([batch], 0, False)
    expected = saved_bytes(spec_of(recipe), ParallelPlan(), len(batch.tokens), recipe.precision == "bf16")
    assert expected == pytest.approx(seen[0], rel=0.05)


def test_a_thousand_workers_take_few_lines():
    recipe = tiny_recipe("data.global_batch=1024", "parallel.expert=8", "parallel.tensor=2")
    lines = layout(recipe, plan_of(recipe.parallel, 1024), 8)
    assert len(lines) < 40
    assert any("tensor" in line and "each on one host" in line for line in lines)
    assert any("data" in line and "each on up to 128 hosts" in line for line in lines)
    assert "  and so on to worker 7 and those that hold the same" in lines


def test_one_worker_takes_fewer():
    lines = layout(tiny_recipe(), ParallelPlan(), None)
    assert lines[:2] == [
        "layout: 1 worker(s); MoE layers 0, 1 (counted from 0)",
        "  worker 0: experts 0 to 7 of each MoE layer",
    ]
    assert not any("group(s)" in line or "collectives" in line for line in lines)
