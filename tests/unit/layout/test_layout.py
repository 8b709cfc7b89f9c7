"""The arithmetic of `moe-train show` against a trace of the real update."""

import pytest
from same_traffic import assert_same_traffic
from tiny_model import tiny_recipe

from moe_train.config.layout import plan_of
from moe_train.config.plan import ParallelPlan
from moe_train.config.resolve import spec_of
from moe_train.layout.exchanges import exchanges
from moe_train.layout.held import held
from moe_train.layout.shapes import units
from moe_train.layout.text import layout, work_of
from moe_train.model.count import count
from moe_train.planner.trace import trace

TENSOR = "parallel.tensor=2"
SEQUENCE = (TENSOR, "parallel.sequence=true")
T5 = ("model.architecture=encoder_decoder", "objective.kind=span_corruption", "objective.sentinels=10")
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
    (
        "parallel.shard=2",
        "engine.reduce_each_microbatch=true",
        "data.micro_batch=1",
        "engine.reduce_dtype=bf16",
    ),
    (TENSOR, "parallel.expert=2", "moe.every=2", "data.micro_batch=2", "moe.shared_experts=1"),
    (
        *SEQUENCE,
        "data.micro_batch=2",
        "moe.shared_experts=1",
        "engine.recompute=block",
        "model.positions=learned",
    ),
    (*SEQUENCE, *T5, "precision=bf16", "engine.gather_dtype=bf16", "engine.recompute=attention"),
    (
        TENSOR,
        "moe.shared_experts=1",
        "precision=bf16",
        "engine.gather_dtype=bf16",
        "engine.recompute=experts",
    ),
]
MORE = [
    (*tensor, *model, f"engine.recompute={recompute}", *precision)
    for tensor in ((TENSOR,), SEQUENCE)
    for model in (("moe.every=2",), T5, ("moe.shared_experts=1", "parallel.expert=2"))
    for recompute in ("none", "experts", "attention", "block")
    for precision in ((), ("precision=bf16",), ("precision=bf16", "engine.gather_dtype=bf16"))
]
MORE += [
    (*tensor, "moe.shared_experts=1", "parallel.expert=2", f"engine.overlap={overlap}", *recompute)
    for tensor in ((TENSOR,), SEQUENCE)
    for overlap in ("shared", "halves")
    for recompute in (
        ("engine.recompute=none",),
        ("engine.recompute=experts",),
        ("engine.recompute=block",),
        ("engine.recompute=experts", "precision=bf16", "engine.gather_dtype=bf16"),
    )
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
    T5,
]


@pytest.mark.parametrize(
    "overrides",
    [
        *LAYOUTS,
        *(pytest.param(each, marks=pytest.mark.distributed_exhaustive, id=" ".join(each)) for each in MORE),
    ],
    ids=" ".join,
)
def test_what_is_held_and_moved_is_what_an_update_holds_and_moves(overrides):
    recipe = tiny_recipe("moe.capacity_factor=null", *overrides)
    plan, parts, traced = plan_of(recipe.parallel, 4), units(spec_of(recipe)), trace(recipe, 4)
    own = held(parts, plan, recipe.optim).values()
    assert sum(part.parameters for part in own) == traced.parameter_bytes
    assert sum(part.gradients for part in own) == traced.gradient_bytes
    assert sum(part.optimizer for part in own) == traced.optimizer_bytes
    listed = exchanges(spec_of(recipe), parts, plan, recipe.engine, work_of(recipe, plan))
    assert_same_traffic(listed, traced.collectives.rows())


@pytest.mark.parametrize("overrides", MODELS, ids=" ".join)
def test_the_units_of_a_model_have_its_parameters(overrides):
    spec = spec_of(tiny_recipe(*overrides))
    own = held(units(spec), ParallelPlan(), tiny_recipe().optim)
    parts = {part: number for part, number in count(spec).parts.items() if number}
    assert {part: one.parameters // 4 for part, one in own.items()} == parts


def test_a_thousand_workers_take_few_lines():
    recipe = tiny_recipe("data.global_batch=1024", "parallel.expert=8", "parallel.tensor=2")
    lines = layout(recipe, plan_of(recipe.parallel, 1024), 8)
    assert len(lines) < 45
    assert any("tensor" in line and "each on one host" in line for line in lines)
    assert any("data" in line and "each on up to 128 hosts" in line for line in lines)
    assert "  and so on to worker 7 and those that hold the same" in lines


def test_one_worker_takes_fewer():
    lines = layout(tiny_recipe(), ParallelPlan(), None)
    assert lines[:2] == [
        "layout: 1 worker; MoE layers 0, 1 (counted from 0)",
        "  worker 0: experts 0 to 7 of each MoE layer",
    ]
    assert not any(" group" in line or "collectives" in line for line in lines)
