"""The DeepSpeed engine trains as the native one: same losses, norms, gradients, updates and state, at every stage.

The runs of the fast tests share one process group, because DeepSpeed takes seconds to import; native ones come first.
"""

import sys
from typing import Any

import pytest
import test_layouts
import test_layouts_routers
import test_layouts_stacks
import torch
from gloo_workers import run_workers
from layout_run import LayoutRun, tiny_step, train
from test_layouts import DROPOUT, PYRAMID, RANDOM, assert_same_gradients, assert_same_run, one_process
from test_layouts_adafactor import ADAFACTOR
from test_layouts_spawn import SPAWNING
from test_layouts_tensor import UNTIED
from tiny_model import global_batch, share_of

from moe_train.parallel.world import World

STAGES = (0, 1, 2)
EXPERTS_CUT = "parallel.expert=2"
FOUR_MICROBATCHES = "data.micro_batch=1"
ADAMW = ("optim.kind=adamw", "optim.lr=1e-2", "optim.weight_decay=0.1")
SPAWNED = (*SPAWNING, *ADAMW, "moe.router.diversify_steps=2")
CUT = ("parallel.tensor=2", "parallel.sequence=true", "data.micro_batch=2")
CUT_MODEL = (*UNTIED, "moe.every=2", "model.activation=gelu", "moe.activation=gelu")
BF16 = (*RANDOM, "precision=bf16", "optim.lr=0.1", "model.activation=gelu")
EVERY = [
    (1, ()),
    (2, ()),
    (2, (EXPERTS_CUT, "moe.dispatch.kind=one_sided")),
    (2, (EXPERTS_CUT, "moe.dispatch.kind=all_to_all", FOUR_MICROBATCHES)),
    (4, ()),
    (4, (EXPERTS_CUT, "data.micro_batch=2")),
    (4, ("parallel.expert=4", "data.micro_batch=1")),
    (4, ("parallel.expert_tensor=2", "data.micro_batch=1")),
    (4, (EXPERTS_CUT, "parallel.expert_tensor=2", "moe.dispatch.kind=all_to_all")),
]
REPRESENTATIVE = pytest.param(4, (EXPERTS_CUT, "data.micro_batch=1"), id="representative")


def deepspeed(stage: int) -> tuple[str, ...]:
    return ("engine.kind=deepspeed", f"engine.stage={stage}")


def unmoved(world: World, *overrides: str) -> list[str]:
    """The parameters that one update leaves as they were."""
    recipe, training_step = tiny_step(world, *overrides)
    shards = training_step.engine.shards
    before = {name: shard.data.detach().clone() for name, shard in shards.items()}
    training_step.update(share_of(global_batch(recipe, 0), world.rank, world.size), 0, False)
    return [name for name, shard in shards.items() if torch.equal(before[name], shard.data)]


def around_a_skip(world: World, *overrides: str) -> list[tuple[float, float, bool]]:
    """Loss, norm and whether it was left out of three updates; in the second the last rank's gradient is infinite."""
    recipe, training_step = tiny_step(world, "stability.skip_non_finite=true", *overrides)
    updates = []

    def hook(module, inputs, output):
        if len(updates) == 1 and world.rank == world.size - 1 and output.requires_grad:
            output.register_hook(lambda grad: grad * torch.inf)

    training_step.engine.model.norm.register_forward_hook(hook)
    for step in range(3):
        share = share_of(global_batch(recipe, step), world.rank, world.size, recipe.data.micro_batch)
        result = training_step.update(share, step, False)
        updates.append((result.mean_loss, result.grad_norm, result.is_skipped))
    return updates


def show_all(world: World) -> dict[str, Any]:
    """What the tests below compare."""
    cut = (EXPERTS_CUT,)
    accumulated = (*cut, FOUR_MICROBATCHES)
    shown: dict[str, Any] = {
        "native bf16": train(world, *BF16, *cut),
        "native skip": around_a_skip(world, *ADAMW, *accumulated),
    }
    shown["imported by native"] = sorted({"deepspeed", "megatron"} & sys.modules.keys())
    for stage in STAGES:
        shown[f"stage {stage}"] = train(world, *RANDOM, *accumulated, *deepspeed(stage))
    shown["imported for whole layers"] = "megatron" in sys.modules
    return shown | {
        "tensor": train(world, *CUT_MODEL, *CUT, *deepspeed(2)),
        "replicas": train(world, *RANDOM, *deepspeed(2)),
        "recompute": train(world, *RANDOM, *cut, "engine.recompute=block", *deepspeed(2)),
        "adamw": train(world, *RANDOM, *ADAMW, *accumulated, *deepspeed(2)),
        "spawned": train(world, *SPAWNED, *cut, *deepspeed(1)),
        "bf16": train(world, *BF16, *cut, *deepspeed(1)),
        "skip": around_a_skip(world, *ADAMW, *accumulated, *deepspeed(2)),
        "unmoved": unmoved(world, *ADAMW, *cut, *deepspeed(2)),
    }


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    """What each of two workers saw."""
    return run_workers(2, show_all, timeout_s=280)


def of(ranks: list[dict[str, Any]], name: str) -> list[Any]:
    return [rank[name] for rank in ranks]


def assert_same(overrides: tuple[str, ...], runs: list[LayoutRun]) -> None:
    """As one native process."""
    assert_same_gradients(one_process(overrides), runs, digits=1e-5)
    assert_same_run(one_process(overrides), runs, digits=2e-6)


def test_stage_0_norms_and_clips_as_one_process_does(ranks):
    """Case 1: DeepSpeed's own norm averages over workers with different experts (deepspeedai/DeepSpeed#8475)."""
    expected, run = one_process(RANDOM), of(ranks, "stage 0")[0]
    assert min(expected.norms[:3]) > 1, "the clip at 1 does something"
    assert run.norms == pytest.approx(expected.norms, rel=2e-5)
    assert run.losses == pytest.approx(expected.losses, rel=2e-6)


@pytest.mark.parametrize("stage", STAGES)
def test_microbatches_of_different_content_are_all_counted(ranks, stage):
    """Case 6: ZeRO 2 kept only the last microbatch's gradient (allenai/open-instruct#1498)."""
    assert_same(RANDOM, of(ranks, f"stage {stage}"))


def test_experts_with_replicas_train_like_one_process(ranks):
    assert_same(RANDOM, of(ranks, "replicas"))


def test_a_tensor_group_with_cut_sequences_trains_like_one_process(ranks):
    assert_same(CUT_MODEL, of(ranks, "tensor"))
    assert of(ranks, "imported for whole layers") == [False, False]


def test_recomputed_blocks_train_like_one_process(ranks):
    assert_same(RANDOM, of(ranks, "recompute"))


def test_adamw_over_ranges_of_flat_tensors_trains_like_one_process(ranks):
    expected, runs = one_process((*RANDOM, *ADAMW)), of(ranks, "adamw")
    assert runs[0].losses == pytest.approx(expected.losses, rel=1e-4)
    assert runs[0].validation == pytest.approx(expected.validation, rel=1e-4)


def test_experts_spawned_from_one_begin_with_fresh_moments(ranks):
    expected, runs = one_process(SPAWNED), of(ranks, "spawned")
    assert runs[0].losses == pytest.approx(expected.losses, rel=1e-4)
    assert runs[0].norms == pytest.approx(expected.norms, rel=1e-3)


def test_bf16_is_our_autocast_over_fp32_weights(ranks):
    expected, run = (of(ranks, name)[0] for name in ("native bf16", "bf16"))
    assert run.losses[0] == expected.losses[0]
    assert run.losses == pytest.approx(expected.losses, rel=1e-5)
    assert run.norms == pytest.approx(expected.norms, rel=1e-4)


def test_a_skipped_update_leaves_no_trace(ranks):
    for mine, native in zip(of(ranks, "skip"), of(ranks, "native skip"), strict=True):
        assert [skipped for *_, skipped in mine] == [False, True, False]
        for (loss, norm, _), (native_loss, native_norm, _) in zip(mine, native, strict=True):
            assert loss == pytest.approx(native_loss, rel=1e-5)
            assert norm == pytest.approx(native_norm, rel=1e-4, nan_ok=True)


def test_every_parameter_moves_in_the_first_update(ranks):
    """Case 7: an optimizer made before modules are replaced freezes them (deepspeedai/DeepSpeed#8377)."""
    assert of(ranks, "unmoved") == [[], []]


def test_the_native_engine_imports_neither_deepspeed_nor_megatron(ranks):
    assert of(ranks, "imported by native") == [[], []]


def train_at_every_stage(world: World, *overrides: str) -> list[LayoutRun]:
    return [train(world, *overrides, *deepspeed(stage)) for stage in STAGES]


@pytest.mark.distributed_exhaustive
@pytest.mark.parametrize(("workers", "layout"), [REPRESENTATIVE, *EVERY])
def test_every_stage_trains_like_one_process(workers, layout):
    for runs in zip(*run_workers(workers, train_at_every_stage, *RANDOM, *layout), strict=True):
        assert_same(RANDOM, list(runs))


@pytest.mark.distributed_exhaustive
@pytest.mark.parametrize("workers", [2, 4])
def test_layers_with_different_numbers_of_experts_train_like_one_process(workers):
    overrides = (*DROPOUT, *PYRAMID)
    for runs in zip(*run_workers(workers, train_at_every_stage, *overrides, EXPERTS_CUT), strict=True):
        assert_same(overrides, list(runs))


def train_variants(world: World, variants: list[tuple[str, ...]]) -> list[LayoutRun]:
    return [train(world, *variant, EXPERTS_CUT, *deepspeed(2)) for variant in variants]


@pytest.mark.distributed_exhaustive
@pytest.mark.parametrize("first", [0, 1, 2])
def test_every_router_objective_and_stack_trains_under_zero_2_like_one_process(first):
    """A third of them in each case, because importing DeepSpeed costs more than a run."""
    routers = [router for router, *_ in test_layouts_routers.EVERY]
    all_variants = [*test_layouts.VARIANTS, *routers, *test_layouts_stacks.VARIANTS]
    variants = [
        variant if set(variant) & {*DROPOUT} else (*DROPOUT, *variant)
        for variant in list(dict.fromkeys(all_variants))[first::3]
    ]
    ranks = run_workers(2, train_variants, variants, timeout_s=500)
    for variant, runs in zip(variants, zip(*ranks, strict=True), strict=True):
        try:
            assert_same(variant, list(runs))
        except AssertionError as error:
            raise AssertionError(f"{' '.join(variant)}: {error}") from error


def train_adafactor(world: World) -> list[LayoutRun]:
    layouts = [(), (EXPERTS_CUT,)] if world.size == 2 else [(EXPERTS_CUT,)]
    return [train(world, *ADAFACTOR, *layout, *deepspeed(0)) for layout in layouts]


@pytest.mark.distributed_exhaustive
@pytest.mark.parametrize("workers", [2, 4])
def test_adafactor_over_whole_parameters_trains_like_one_process(workers):
    for runs in zip(*run_workers(workers, train_adafactor), strict=True):
        assert_same_gradients(one_process(ADAFACTOR), list(runs), digits=1e-5)
        assert_same_run(one_process(ADAFACTOR), list(runs), digits=2e-6)
