"""A run may change its engine: what one engine saved, the other loads bit for bit, and trains on with."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gloo_workers import run_workers
from layout_run import tiny_step
from test_resharding import ADAMW, PYRAMID, STEPS, global_tensors, save_state
from tiny_model import global_batch, share_of

from moe_train.checkpoint.checkpointer import Checkpointer
from moe_train.parallel.world import World
from moe_train.step.training_step import TrainingStep

ROUTER = ("moe.router.kind=deepseek", "moe.router.k=2", "moe.capacity_factor=null")
RECIPE = (*PYRAMID, *ADAMW, *ROUTER, "optim.weight_decay=0.1")
NATIVE = ("engine.kind=native",)
LAYOUTS = [("parallel.expert=2",), ("parallel.expert=1",)]


def deepspeed(stage: int) -> tuple[str, ...]:
    return ("engine.kind=deepspeed", f"engine.stage={stage}")


def train_on(training_step: TrainingStep, first: int, end: int) -> list[float]:
    """The norms of some updates."""
    recipe, data = training_step.recipe, training_step.mesh.data
    return [
        training_step.update(
            share_of(global_batch(recipe, step), data.rank, data.size), step, stop_requested=False
        ).grad_norm
        for step in range(first, end)
    ]


def load(world: World, run_dir: Path, *overrides: str) -> TrainingStep:
    """A step of another seed, which has loaded the checkpoint in `run_dir`."""
    recipe, training_step = tiny_step(world, "seed=1", *RECIPE, *overrides)
    checkpointer = Checkpointer(run_dir, recipe.checkpoint, replace(world, attempt=2))
    found = checkpointer.choose("latest")
    assert found is not None
    checkpointer.load(found, training_step.engine.state())
    training_step.engine.after_load()
    return training_step


def back_and_forth(world: World, folder: Path, native: str, zero: str, stage: int) -> tuple[bool, ...]:
    """Native, DeepSpeed, native: is a validation pass after each load that of the first, and are the updates?"""
    recipe, first = tiny_step(world, *RECIPE, native)
    train_on(first, 0, STEPS)
    save_state(world, folder / "first", recipe, first)
    batches = share_of(global_batch(recipe, 99), first.mesh.data.rank, first.mesh.data.size)

    second = load(world, folder / "first", zero, *deepspeed(stage))
    save_state(world, folder / "second", recipe, second)
    validation = second.evaluate(batches, STEPS)
    third = load(world, folder / "second", native)
    save_state(world, folder / "third", recipe, third)
    expected = first.evaluate(batches, STEPS)
    norms = [train_on(step, STEPS, STEPS + 3) for step in (first, second, third)]
    return (
        validation == pytest.approx(expected, rel=1e-6),
        third.evaluate(batches, STEPS) == first.evaluate(batches, STEPS),
        norms[1] == pytest.approx(norms[0], rel=1e-4),
        norms[2] == norms[0],
    )


def both_layouts(world: World, folder: Path, stages: tuple[int, ...]) -> list[tuple[bool, ...]]:
    """From experts on all workers to experts cut, and back."""
    return [
        back_and_forth(world, folder / f"{stage}-{index}", *native, *zero, stage)
        for stage in stages
        for index, (native, zero) in enumerate([LAYOUTS, LAYOUTS[::-1]])
    ]


def assert_same_tensors(folder: Path) -> None:
    first, *others = (global_tensors(folder / name) for name in ("first", "second", "third"))
    for other in others:
        assert other.keys() == first.keys()
        for name, tensor in first.items():
            assert torch.equal(other[name], tensor), name


def test_native_to_zero_2_and_back_on_two_workers(tmp_path):
    assert run_workers(2, both_layouts, tmp_path, (2,), timeout_s=200) == [[(True,) * 4] * 2] * 2
    for folder in tmp_path.iterdir():
        assert_same_tensors(folder)


@pytest.mark.distributed_exhaustive
@pytest.mark.parametrize("workers", [2, 4])
def test_native_to_every_stage_and_back(tmp_path, workers):
    seen = run_workers(workers, both_layouts, tmp_path, (0, 1, 2), timeout_s=280)
    assert seen == [[(True,) * 4] * 6] * workers
    for folder in tmp_path.iterdir():
        assert_same_tensors(folder)
