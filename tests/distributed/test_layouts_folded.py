"""Runs on meshes where experts are spread over tensor ranks and cut in slices, against one process.

SGD at a rate of 3 for five steps, as in test_layouts.py. test_divided_layers.py has every router layer by layer.
"""

from collections.abc import Sequence

import pytest
import torch
from gloo_workers import run_workers
from layout_run import STEPS, LayoutRun, gathered, mean, tiny_step, train, train_under_watch
from test_divided_layers import layouts
from test_layouts import RANDOM, assert_same_gradients, assert_same_run, one_process
from test_layouts_routers import (
    BASE,
    DENSE_TO_SPARSE,
    DROPOUT,
    DSELECT_K,
    HIERARCHICAL_TOP_K,
    REINFORCE,
    SINKHORN,
    SMEAR,
    SOFT,
    THOR,
    kind_of,
)
from test_layouts_spawn import SPAWNING, assert_same_experts
from test_layouts_tensor import train_all
from tiny_model import global_batch, share_of

from moe_train.parallel.world import World

ALL_TO_ALL = ("moe.dispatch.kind=all_to_all",)
TWO_HOSTS = ("moe.dispatch.kind=hierarchical", "moe.dispatch.ranks_per_host=2")
FAST = [
    (RANDOM, 2, (*layouts(2, 2, 1), "parallel.sequence=true")),
    (DROPOUT, 2, (*layouts(1, 1, 2), "data.micro_batch=2")),
]
ROUTERS = (
    RANDOM,
    DROPOUT,
    BASE,
    # Without its hard step, at which one token near a tie takes another expert on four tensor ranks.
    (*DENSE_TO_SPARSE, "moe.router.hard_step=6"),
    DSELECT_K,
    HIERARCHICAL_TOP_K,
    REINFORCE,
    SINKHORN,
    SMEAR,
    SOFT,
    THOR,
)
LAYOUTS = [
    (4, layouts(2, 4, 1, *ALL_TO_ALL)),
    (4, layouts(2, 2, 2, *TWO_HOSTS)),
    (4, (*layouts(2, 1, 2), "data.micro_batch=2")),
    (4, (*layouts(2, 2, 1), "engine.reshard_after_forward=true")),
    (4, (*layouts(4, 4, 1), "model.num_heads=4")),
    (4, (*layouts(4, 1, 2), "model.num_heads=4")),
    (4, layouts(1, 2, 2, *ALL_TO_ALL)),
    (4, (*layouts(2, 4, 1), "parallel.sequence=true")),
    (4, (*layouts(2, 2, 2, *ALL_TO_ALL), "parallel.sequence=true", "engine.recompute=block")),
]


def of_one_process(overrides: tuple[str, ...], layout: tuple[str, ...]) -> LayoutRun:
    """The run in one process; a layout may need another number of heads."""
    return one_process((*overrides, *(each for each in layout if each.startswith("model."))))


def assert_train_like_one_process(
    cases: Sequence[tuple[str, ...]], workers: int, layout: tuple[str, ...]
) -> None:
    """Every case in one process group, since starting one takes seconds."""
    on_ranks = run_workers(workers, train_all, [(each, layout) for each in cases], timeout_s=600)
    for index, overrides in enumerate(cases):
        runs, expected = [of_rank[index] for of_rank in on_ranks], of_one_process(overrides, layout)
        assert_same_gradients(expected, runs, digits=1e-5)
        assert_same_run(expected, runs, digits=2e-6)


@pytest.mark.parametrize(("overrides", "workers", "layout"), FAST, ids=kind_of)
def test_a_run_with_spread_or_cut_experts_is_that_of_one_process(overrides, workers, layout):
    assert_train_like_one_process([overrides], workers, layout)


@pytest.mark.distributed_exhaustive
@pytest.mark.parametrize(("workers", "layout"), LAYOUTS)
def test_every_router_trains_like_one_process_with_spread_and_cut_experts(workers, layout):
    assert_train_like_one_process(ROUTERS, workers, layout)


BF16 = ("precision=bf16", "model.activation=gelu")


def first_losses(world: World, cases: list[tuple[str, ...]]) -> list[float]:
    """The loss of the first update of each case."""
    losses = []
    for overrides in cases:
        recipe, training_step = tiny_step(world, *BF16, *overrides)
        data = training_step.mesh.data
        result = training_step.update(share_of(global_batch(recipe, 0), data.rank, data.size), 0, False)
        losses.append(mean(data, result.loss))
    return losses


@pytest.mark.distributed_exhaustive
@pytest.mark.parametrize("router", ["switch", "top_k"])
def test_the_first_loss_in_bf16_depends_on_no_dispatcher_and_no_place_of_experts(router):
    """Except that hosts round their part of the sum over a token's experts, if these are on several."""
    kind = f"moe.router.kind={router}"
    exchanges = [("moe.dispatch.kind=one_sided",), ALL_TO_ALL]
    alone = World(0, 1, 0, 1, torch.device("cpu"))
    expected, *others = first_losses(alone, [(kind,), *((kind, *exchange) for exchange in exchanges)])
    assert others == pytest.approx([expected] * len(others), rel=1e-6)
    if router == "switch":
        exchanges.append(TWO_HOSTS)
    for tensor in (1, 2):  # whose ranks add up products that are rounded to bf16
        degrees = ((tensor, 4, 1), (tensor, 2, 1))
        cases = [(kind, *layouts(*three, *exchange)) for three in degrees for exchange in exchanges]
        losses = run_workers(4, first_losses, cases)[0]
        wanted = expected if tensor == 1 else losses[0]
        assert losses == pytest.approx([wanted] * len(cases), rel=1e-6)


@pytest.mark.distributed_exhaustive
@pytest.mark.parametrize(("workers", "layout"), LAYOUTS)
def test_copies_of_expert_0_are_the_same_in_slices(workers, layout):
    overrides = (*SPAWNING, f"moe.router.diversify_steps={STEPS}")
    results = run_workers(workers, train_under_watch, *overrides, *layout)
    runs = [run for run, _ in results]
    expected = of_one_process(overrides, layout)
    assert_same_run(expected, runs, digits=2e-6)
    assert_same_experts(expected, runs)
    assert [seen for _, seen in results] == [[]] * workers, "a worker held all experts of a layer"


@pytest.mark.distributed_exhaustive
@pytest.mark.parametrize(("workers", "layout"), LAYOUTS)
def test_each_worker_holds_its_part_of_every_expert(workers, layout):
    runs = run_workers(workers, train, *RANDOM, *layout)
    whole = gathered([of_one_process(RANDOM, layout).parameters])
    for name, tensor in gathered([run.parameters for run in runs]).items():
        assert (tensor - whole[name]).abs().max() < 1e-5 * whole[name].abs().max(), name
        for run in runs:
            box = run.parameters[name]
            if box.is_expert:
                assert box.data.numel() * workers == tensor.numel(), name
