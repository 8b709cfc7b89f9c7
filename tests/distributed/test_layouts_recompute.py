"""What runs again in the backward pass gives the same numbers on every layout, bit by bit."""

import pytest
import torch
from conftest import require_tool
from gloo_workers import run_workers
from layout_run import LayoutRun, tiny_step, train
from test_layouts import RANDOM, assert_same_gradients, assert_same_run, one_process
from test_layouts_cover_routers import variants
from tiny_model import global_batch, share_of

from moe_train.moe.layers.layer import moe_layers_of
from moe_train.parallel.world import World

PARTS = ("none", "experts", "attention", "block")
RESHARDED = ("parallel.expert=2", "data.micro_batch=1", "engine.reshard_after_forward=true")
EVERY_LAYOUT = [
    (2, ("parallel.expert=2", "moe.dispatch.kind=all_to_all", "moe.expert_dropout=0.2")),
    (2, ("parallel.expert=1", "data.micro_batch=2")),
    (2, ("parallel.expert_tensor=2", "data.micro_batch=2")),
    (4, ("parallel.expert=4", "moe.dispatch.kind=hierarchical", "moe.dispatch.ranks_per_host=2")),
    (4, ("parallel.expert=1", "engine.reshard_after_forward=true", "moe.router.kind=smear")),
    (4, ("parallel.expert=2", "moe.router.kind=noisy_top_k", "moe.shared_experts=1", "precision=bf16")),
]


def trained_with_each(world: World, *layout: str) -> list[LayoutRun]:
    """A run with each part running again, none first."""
    return [train(world, *layout, f"engine.recompute={parts}") for parts in PARTS]


def assert_same_numbers(runs: list[LayoutRun]) -> None:
    """Bit by bit, all as the first."""
    first = runs[0]
    for run in runs[1:]:
        assert (run.losses, run.norms, run.auxiliary) == (first.losses, first.norms, first.auxiliary)
        assert run.validation == first.validation
        assert all(map(torch.equal, run.loads, first.loads))
        for mine, theirs in ((run.gradients, first.gradients), (run.parameters, first.parameters)):
            assert all(torch.equal(mine[name].data, box.data) for name, box in theirs.items())


def test_a_layout_in_which_blocks_run_again_trains_like_one_process():
    of_ranks = run_workers(4, trained_with_each, *RANDOM, *RESHARDED, "moe.dispatch.kind=all_to_all")
    for runs in of_ranks:
        assert_same_numbers(runs)
    assert_same_gradients(one_process(RANDOM), [runs[-1] for runs in of_ranks], digits=1e-5)
    assert_same_run(one_process(RANDOM), [runs[-1] for runs in of_ranks], digits=2e-6)


@pytest.mark.distributed_exhaustive
@pytest.mark.parametrize(("workers", "layout"), EVERY_LAYOUT)
def test_what_runs_again_changes_no_number_on_any_layout(workers, layout):
    for runs in run_workers(workers, trained_with_each, "model.dropout=0.1", *layout):
        assert_same_numbers(runs)


def slabs_of_one_update(world: World, *layout: str) -> dict[tuple[str, int], int]:
    """The slabs that an update needs at once, by what runs again and the number of layers."""
    slabs = {}
    for parts in PARTS:
        for num_layers in (1, 3):
            overrides = (*layout, f"engine.recompute={parts}", f"model.num_layers={num_layers}")
            recipe, training_step = tiny_step(world, *overrides)
            data = training_step.mesh.data
            training_step.update(share_of(global_batch(recipe, 0), data.rank, data.size), 0, False)
            _, layer = moe_layers_of(training_step.engine.model)[0]
            slabs[parts, num_layers] = layer.dispatcher.exchange.pool.num_touched
    return slabs


def test_one_sided_holds_no_slab_of_what_runs_again_between_the_passes():
    require_tool("g++", "g++")
    for slabs in run_workers(2, slabs_of_one_update, "parallel.expert=2", "moe.dispatch.kind=one_sided"):
        assert slabs["none", 3] == slabs["none", 1] + 2 * 2, "two slabs of each further layer"
        assert slabs["attention", 3] == slabs["none", 3]
        for parts in ("experts", "block"):
            assert slabs[parts, 3] == slabs[parts, 1], slabs
            assert slabs[parts, 3] <= 8, slabs


@pytest.mark.distributed_exhaustive
@pytest.mark.parametrize("model", sorted({model for model, _ in variants()}), ids=" ".join)
def test_blocks_of_every_kind_of_model_run_again_with_the_same_numbers(model):
    alone = World(0, 1, 0, 1, torch.device("cpu"))
    accumulated = (*model, "data.micro_batch=4")
    assert_same_numbers(
        [train(alone, *accumulated, f"engine.recompute={parts}") for parts in ("none", "block")]
    )
