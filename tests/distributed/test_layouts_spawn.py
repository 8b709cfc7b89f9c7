"""Experts made out of one: the same copies, and the same run around them, wherever the experts are."""

import pytest
from gloo_workers import run_workers
from layout_run import STEPS, LayoutRun, gathered, train_under_watch
from test_layouts import assert_same_run, one_process
from test_layouts_routers import DROPLESS

SPAWNING = (
    *DROPLESS,
    "moe.router.kind=dense_to_sparse",
    "moe.router.decay_steps=3",
    "moe.router.threshold=0.05",
    "moe.router.hard_step=2",
    "moe.router.diversify_mask=0.25",
)
FAST = [
    (2, ("parallel.expert=2",)),
    (4, ("parallel.expert=2", "data.micro_batch=1", "engine.reshard_after_forward=true")),
]
EVERY = [
    (workers, (f"parallel.expert={expert}", *exchange))
    for workers, expert in ((2, 1), (2, 2), (4, 1), (4, 2), (4, 4))
    for exchange in ((), ("moe.dispatch.kind=all_to_all",))
    if expert > 1 or not exchange
]


def assert_same_experts(expected: LayoutRun, runs: list[LayoutRun]) -> None:
    """The same weights but for rounding, and zeros in the very same places."""
    whole = gathered([expected.parameters])
    for name, mine in gathered([run.parameters for run in runs]).items():
        assert (mine - whole[name]).abs().max() < 1e-5 * whole[name].abs().max(), name
        if runs[0].parameters[name].is_expert:
            assert ((mine == 0) == (whole[name] == 0)).all(), name
            assert 0.2 < (mine == 0).float().mean() < 0.3, name


def assert_spawns_like_one_process(workers: int, layout: tuple[str, ...]) -> None:
    """With the copies as the last thing that is seen, and in the middle of the run."""
    for phase in (STEPS, 2):
        overrides = (*SPAWNING, f"moe.router.diversify_steps={phase}")
        results = run_workers(workers, train_under_watch, *overrides, *layout)
        runs = [run for run, _ in results]
        assert_same_run(one_process(overrides), runs, digits=2e-6)
        if phase == STEPS:
            assert_same_experts(one_process(overrides), runs)
        if "parallel.expert=1" not in layout:
            assert [seen for _, seen in results] == [[]] * workers, "a worker held all experts of a layer"


@pytest.mark.parametrize(("workers", "layout"), FAST)
def test_copies_are_the_same_as_in_one_process(workers, layout):
    assert_spawns_like_one_process(workers, layout)


@pytest.mark.distributed_exhaustive
@pytest.mark.parametrize(("workers", "layout"), EVERY)
def test_copies_are_the_same_as_in_one_process_on_every_layout(workers, layout):
    assert_spawns_like_one_process(workers, layout)
