"""A run moves over engines and layouts, is killed on each, and ends as the run that never moved.

Native on data 2 x tensor 2, DeepSpeed's stage 2 on four workers, native on one, DeepSpeed's stage 1 with tensor 2. On
each a rank is killed between the gradients of an update and the update. What was loaded is written at once, by the new
layout, and is what was saved: parameters, moments, counts of updates and the router's biases, bit for bit.
"""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gloo_workers import WorkerError, run_workers
from layout_run import tiny_step
from test_deepspeed import deepspeed
from test_resharding import global_tensors
from tiny_model import global_batch, share_of
from torch import Tensor

from moe_train.checkpoint.checkpointer import Checkpointer
from moe_train.checkpoint.lineage import record_start
from moe_train.parallel.world import World
from moe_train.step.training_step import TrainingStep

RECIPE = (
    "moe.num_experts=[4,8]",
    "moe.router.kind=deepseek",
    "moe.router.k=2",
    "moe.capacity_factor=null",
    "moe.shared_experts=1",
    "model.dropout=0.1",
    "model.positions=relative",
    "model.activation=gelu",
    "moe.activation=gelu",
    "data.tokenizer.vocab_size=301",
    "optim.kind=adamw",
    "optim.lr=1e-3",
    "optim.weight_decay=0.1",
    "checkpoint.keep_last=0",
)
LEGS = [
    (4, ("parallel.tensor=2", "parallel.sequence=true", "parallel.expert=2")),
    (4, ("parallel.expert=2", *deepspeed(2))),
    (1, ()),
    (4, ("parallel.tensor=2", "parallel.expert=4", *deepspeed(1))),
]
STEPS = 3
"""Updates of each leg; a rank is killed in the second."""


def train_leg(world: World, folder: Path, attempt: int, leg: int, kills: bool) -> None:
    """Trains from the newest checkpoint of the run to the end of a leg, with a checkpoint after each update."""
    world = replace(world, attempt=attempt)
    recipe, training_step = tiny_step(world, *RECIPE, *LEGS[leg][1])
    engine, checkpointer = training_step.engine, Checkpointer(folder / "run", recipe.checkpoint, world)
    found = checkpointer.choose("latest") if attempt > 1 else None
    if world.is_main:
        record_start(folder / "run", attempt, found.origin if found else None)
    world.barrier()
    first = 0
    if found is not None:
        spoil(training_step)
        first = checkpointer.load(found, engine.state())["step"]
        engine.after_load()
        save_copy(world, folder / f"copy-{attempt}", first, training_step)
    if kills:
        kill_before_update(world, training_step, leg * STEPS + 1 - first, folder / f"killed-{attempt}")
    for step in range(first, (leg + 1) * STEPS):
        row = update(training_step, step)
        checkpointer.save(step + 1, engine.state(), {})
        checkpointer.wait()
        if world.is_main:
            with (folder / "rows.jsonl").open("a") as rows:
                rows.write(json.dumps(row) + "\n")


def update(training_step: TrainingStep, step: int) -> dict[str, float]:
    recipe, data = training_step.recipe, training_step.mesh.data
    share = share_of(global_batch(recipe, step), data.rank, data.size, recipe.data.micro_batch)
    result = training_step.update(share, step, False)
    return {"step": step, "loss": result.mean_loss, "norm": result.grad_norm}


def spoil(training_step: TrainingStep) -> None:
    """Makes all that a load has to bring anything but what it was at the start."""
    engine = training_step.engine
    for shards in engine.state().values():
        for shard in shards:
            shard.data.fill_(7)
    for shard in engine.shards.values():
        shard.data.detach().fill_(torch.nan)


def save_copy(world: World, run_dir: Path, step: int, training_step: TrainingStep) -> None:
    if world.is_main:
        record_start(run_dir, world.attempt, None)
    world.barrier()
    checkpointer = Checkpointer(run_dir, training_step.recipe.checkpoint, world)
    checkpointer.save(step, training_step.engine.state(), {})
    checkpointer.wait()


def kill_before_update(world: World, training_step: TrainingStep, number: int, mark: Path) -> None:
    """Has the last rank killed when it has the gradients of an update, and leaves a mark of it."""
    engine = training_step.engine
    sound, made = engine.update, 0

    def update_or_die(lr: float, norm: float) -> None:
        nonlocal made
        if made == number and world.rank == world.size - 1:
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        made += 1
        sound(lr, norm)

    engine.update = update_or_die


def unmoved() -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """The rows of one process, and the tensors that it ends with."""
    _, training_step = tiny_step(World(0, 1, 0, 1, torch.device("cpu")), *RECIPE)
    rows = [update(training_step, step) for step in range(len(LEGS) * STEPS)]
    return rows, {name: shard.data.detach() for name, (shard,) in training_step.engine.state().items()}


@pytest.mark.distributed_exhaustive
def test_a_run_that_moves_and_is_killed_everywhere_ends_as_one_that_does_not(tmp_path):
    for leg, (workers, _) in enumerate(LEGS):
        with pytest.raises(WorkerError, match=r"exit codes|failed first"):
            run_workers(workers, train_leg, tmp_path, 2 * leg + 1, leg, True, timeout_s=400)
        assert (tmp_path / f"killed-{2 * leg + 1}").exists()
        run_workers(workers, train_leg, tmp_path, 2 * leg + 2, leg, False, timeout_s=400)

    for attempt in range(2, 2 * len(LEGS) + 1):
        (copy,) = (tmp_path / f"copy-{attempt}" / "checkpoints").glob("step_*")
        step = int(copy.name.removeprefix("step_"))
        assert step == (attempt - 1) // 2 * STEPS + (attempt + 1) % 2
        assert_same_bits(global_tensors(tmp_path / "run", step), global_tensors(copy.parents[1], step))

    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    expected, tensors = unmoved()
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert row == pytest.approx(other, rel=1e-4), row["step"]
    moved = global_tensors(tmp_path / "run", len(LEGS) * STEPS)
    assert moved.keys() == tensors.keys()
    for name, value in tensors.items():
        # An update divides by the root of squares, and so makes much of gradients that are nothing but rounding.
        room = 1e-3 if name.startswith("optim.") else 2e-2
        assert (moved[name] - value).abs().max() <= room * value.abs().max(), name


def assert_same_bits(saved: dict[str, Tensor], loaded: dict[str, Tensor]) -> None:
    assert loaded.keys() == saved.keys()
    for name, value in saved.items():
        assert torch.equal(loaded[name], value), name
    assert saved["model.embedding.weight"].shape == (301, 32)
    assert any(name.endswith("router.bias") for name in saved)
