"""Adafactor on every layout: the factors and root mean squares of whole parameters, saved and loaded anywhere."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gloo_workers import run_workers
from layout_run import STEPS, LayoutRun, gathered, tiny_step, train
from test_layouts import one_process
from test_resharding import global_tensors, save_state
from tiny_model import global_batch, share_of

from moe_train.checkpoint.checkpointer import Checkpointer
from moe_train.checkpoint.layout import boxes_of
from moe_train.parallel.world import World

# gelu, because at the kink of relu rounding moves a gradient; narrow factors, because the tiny model is narrow.
ADAFACTOR = (
    "model.activation=gelu",
    "moe.router.jitter=0.1",
    "optim.kind=adafactor",
    "optim.lr=0.3",
    "optim.beta1=0.5",
    "optim.clip=0.5",
    "optim.factor_from=8",
    "optim.schedule.kind=constant",
)
SAVED_AT = 3
EVERY = [(2, 2), (4, 1), (4, 2), (4, 4)]


def train_save_and_resume(world: World, run_dir: Path, *overrides: str) -> tuple[LayoutRun, bool]:
    """A run; and whether another one that goes on from its checkpoint of step 3 comes to the same bits."""
    whole = train(world, *overrides)
    recipe, first = tiny_step(world, *overrides)
    run_steps(first, world, 0, SAVED_AT)
    save_state(world, run_dir, recipe, first)
    _, second = tiny_step(world, *overrides)
    for _, shard in boxes_of(second.engine.state()):
        shard.data.fill_(7)  # whatever is not loaded stays so
    checkpointer = Checkpointer(run_dir, recipe.checkpoint, replace(world, attempt=2))
    found = checkpointer.choose("latest")
    assert found is not None
    checkpointer.load(found, second.engine.state())
    run_steps(second, world, SAVED_AT, STEPS)
    same = all(torch.equal(box.data, second.engine.locals[name]) for name, box in whole.parameters.items())
    return whole, same


def run_steps(training_step, world: World, first: int, end: int) -> None:
    for step in range(first, end):
        training_step.update(
            share_of(global_batch(training_step.recipe, step), world.rank, world.size), step, False
        )


def load_here(run_dir: Path, copy_dir: Path) -> None:
    """Load the checkpoint on one worker, and save what arrived."""
    world = World(0, 1, 0, 2, torch.device("cpu"))
    recipe, training_step = tiny_step(world, "seed=1", *ADAFACTOR)
    checkpointer = Checkpointer(run_dir, recipe.checkpoint, world)
    found = checkpointer.choose("latest")
    assert found is not None
    checkpointer.load(found, training_step.engine.state())
    save_state(world, copy_dir, recipe, training_step)


def check(tmp_path: Path, workers: int, expert: int) -> None:
    runs, same = zip(
        *run_workers(
            workers, train_save_and_resume, tmp_path / "run", *ADAFACTOR, f"parallel.expert={expert}"
        ),
        strict=True,
    )
    assert all(same)
    expected = one_process(ADAFACTOR)
    assert runs[0].losses == pytest.approx(expected.losses, rel=1e-5)
    whole = gathered([expected.parameters])
    for name, value in gathered([run.parameters for run in runs]).items():
        assert (value - whole[name]).abs().max() < 1e-4 * whole[name].abs().max(), name

    load_here(tmp_path / "run", tmp_path / "copy")
    before, after = global_tensors(tmp_path / "run"), global_tensors(tmp_path / "copy")
    assert after.keys() == before.keys()
    assert {name.split(".")[1] for name in after if name.startswith("optim.")} == {
        "step",
        "row",
        "column",
        "square",
        "exp_avg",
    }
    for name, value in before.items():
        assert torch.equal(after[name], value), name
        assert not value.isnan().any(), name


def test_two_workers_train_as_one_and_resume_bit_by_bit(tmp_path):
    check(tmp_path, workers=2, expert=1)


@pytest.mark.distributed_exhaustive
@pytest.mark.parametrize(("workers", "expert"), EVERY)
def test_every_layout_trains_as_one_worker_and_resumes_bit_by_bit(tmp_path, workers, expert):
    check(tmp_path, workers, expert)
