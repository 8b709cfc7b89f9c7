"""Models on tensor groups under DeepSpeed train like one process: every position, head and stack, at every stage."""

import pytest
from gloo_workers import run_workers
from layout_run import LayoutRun, train
from test_deepspeed import ADAMW, BF16, STAGES, deepspeed
from test_layouts import assert_same_gradients, assert_same_run, one_process
from test_layouts_tensor import FACTORED, LAYOUTS, MODELS, SEQUENCE
from test_matrix import differences_after

from moe_train.parallel.world import World

FOR_BOTH_ENGINES = [layout for layout in LAYOUTS if "engine.reshard_after_forward=true" not in layout[1]]
MIXED = ("moe.every=2", "model.dropout=0.1", "model.activation=gelu", "moe.activation=gelu")
FOLDED = [
    (2, ("parallel.tensor=2", "parallel.expert=2")),
    (4, ("parallel.tensor=2", "parallel.expert=4", "parallel.sequence=true", "data.micro_batch=1")),
    (4, ("parallel.tensor=2", "parallel.expert_tensor=2", "parallel.expert=2")),
    (4, ("parallel.tensor=4", "parallel.expert=2", "model.num_heads=4")),
]


def train_all(world: World, cases: list[tuple[str, ...]]) -> list[LayoutRun]:
    return [train(world, *case) for case in cases]


def assert_all_same(workers: int, cases: list[tuple[tuple[str, ...], tuple[str, ...]]]) -> None:
    """Compares cases of a model and a layout, in one process group: importing DeepSpeed costs more than a run."""
    ranks = run_workers(workers, train_all, [(*model, *layout) for model, layout in cases], timeout_s=900)
    for (model, layout), runs in zip(cases, zip(*ranks, strict=True), strict=True):
        expected = one_process((*model, *(each for each in layout if each.startswith("model."))))
        try:
            assert_same_gradients(expected, list(runs), digits=1e-5)
            assert_same_run(expected, list(runs), digits=1e-5)
        except AssertionError as error:
            raise AssertionError(f"{' '.join((*model, *layout))}: {error}") from error


@pytest.mark.distributed_exhaustive
@pytest.mark.parametrize(("workers", "layout"), FOR_BOTH_ENGINES, ids=str)
def test_every_model_trains_the_same_on_every_tensor_layout(workers, layout):
    cases = [(model, (*layout, *deepspeed(1 + index % 2))) for index, model in enumerate(MODELS)]
    assert_all_same(workers, [*cases, (FACTORED, (*layout, *deepspeed(0)))])


@pytest.mark.distributed_exhaustive
@pytest.mark.parametrize(("workers", "layout"), FOLDED, ids=str)
def test_experts_on_tensor_ranks_train_the_same_at_every_stage(workers, layout):
    assert_all_same(workers, [(MIXED, (*layout, *deepspeed(stage))) for stage in STAGES])


@pytest.mark.distributed_exhaustive
def test_bf16_rounds_as_the_native_engine_does():
    layout = ("model.num_heads=4", *SEQUENCE)
    (run, native), _ = run_workers(2, train_pair, (*BF16, *layout), timeout_s=300)
    assert run.losses[0] == pytest.approx(native.losses[0], rel=1e-6)
    assert run.losses == pytest.approx(native.losses, rel=1e-4)
    assert run.norms[:2] == pytest.approx(native.norms[:2], rel=1e-3)


def train_pair(world: World, overrides: tuple[str, ...]) -> tuple[LayoutRun, LayoutRun]:
    """Under DeepSpeed, and natively."""
    native = train(world, *overrides)
    return train(world, *overrides, *deepspeed(2)), native


@pytest.mark.distributed_exhaustive
def test_copies_of_tensor_ranks_are_equal_to_the_bit_after_twenty_updates():
    overrides = (*MIXED, *ADAMW, "moe.router.kind=deepseek", "moe.capacity_factor=null", *SEQUENCE)
    assert run_workers(4, differences_after, 20, *overrides, *deepspeed(2), timeout_s=300) == [[]] * 4
