"""A run of the tiny model on text that it learns fast, with batches in it that it cannot know: real loss spikes."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tiny_model import share_of, tiny_recipe, vocabulary
from torch import Tensor

from moe_train.callbacks.callback import Callback
from moe_train.callbacks.group import CallbackGroup
from moe_train.checkpoint.checkpointer import Checkpointer
from moe_train.checkpoint.lineage import record_start
from moe_train.config.layout import plan_of
from moe_train.config.schema import Recipe
from moe_train.data.batch import Batch
from moe_train.parallel.mesh import Mesh
from moe_train.parallel.world import World
from moe_train.step.training_step import TrainingStep
from moe_train.trainer import Trainer

COMMON = (
    "steps=22",
    "model.num_layers=1",
    "log_every=1",
    "validate_every=0",
    "optim.kind=adamw",
    "optim.lr=1e-2",
    "optim.schedule.kind=constant",
    "checkpoint.every=6",
    "checkpoint.keep_last=0",
    "stability.spike_window=6",
    "stability.spike_threshold=8",
    "stability.spike_patience=2",
    "stability.rollback_margin=2",
)
ROLLBACK = (*COMMON, "stability.rollback=true")


@dataclass
class PoisonedText:
    """A loader: batches of eight words only, but at `poison` (on `only_rank`, if it is given) of others.

    `left_out` is a range of batches that is not there: what comes after it takes its place.
    """

    recipe: Recipe
    poison: Sequence[int] = ()
    left_out: range = range(0)
    only_rank: int | None = None

    def batch(self, step: int, data_rank: int, data_degree: int, micro_batch: int | None) -> list[Batch]:
        place = step + len(self.left_out) if step >= self.left_out.start else step
        size, length = self.recipe.data.global_batch, self.recipe.data.sequence_length
        tokens = torch.randint(0, 8, (size, length + 1), generator=torch.Generator().manual_seed(place))
        whole = Batch(tokens[:, :-1], tokens[:, 1:], torch.arange(size) + size * place)
        share = share_of(whole, data_rank, data_degree, micro_batch)
        if place in self.poison and self.only_rank in (None, data_rank):
            share = [Batch(part.tokens, part.targets + 200, part.sequence_ids) for part in share]
        return share


class Rows(Callback):
    """Keeps every row."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def on_row(self, row) -> None:
        self.rows.append(dict(row))

    def events(self, name: str) -> list[dict[str, Any]]:
        """The events of this name."""
        return [row for row in self.rows if row.get("event") == name]


@dataclass
class StopAt:
    """A watch that asks for a stop in the update after `step` updates; None: never."""

    step: int | None
    seen: list[int] = field(default_factory=list)

    @property
    def stop_requested(self) -> bool:
        return self.step is not None and len(self.seen) == self.step

    def beat(self, step: int) -> None:
        self.seen.append(step)

    def beat_part(self) -> None:
        pass

    def during(self, phase: str) -> AbstractContextManager[None]:
        return nullcontext()


def make(
    world: World, run_dir: Path, overrides: Sequence[str], stop_at: int | None = None, **text: Any
) -> tuple[Trainer, Rows]:
    """A trainer that goes on from the newest checkpoint of `run_dir`, if there is one."""
    recipe = tiny_recipe(*overrides)
    mesh = Mesh.build(plan_of(recipe.parallel, world.size), world)
    loader, rows = PoisonedText(recipe, **text), Rows()
    checkpointer = Checkpointer(run_dir, recipe.checkpoint, world)
    trainer = Trainer(
        recipe=recipe,
        mesh=mesh,
        training_step=TrainingStep.build(recipe, mesh, vocabulary(recipe)),
        loader=loader,
        validation=loader.batch(10_000, mesh.data.rank, mesh.data.size, None),
        checkpointer=checkpointer,
        callbacks=CallbackGroup({"rows": rows}),
        watch=StopAt(stop_at),
        fingerprint="text",
    )
    found = checkpointer.choose("latest")
    if found is not None:
        trainer.restore(checkpointer.load(found, trainer.training_step.engine.state()))
    if world.is_main:
        record_start(run_dir, world.attempt, found.origin if found else None)
    world.barrier()
    return trainer, rows


def bits(trainer: Trainer) -> dict[str, Tensor]:
    """Copies of all that a checkpoint holds of this rank: parameters, moments, buffers."""
    return {name: shard.data.clone() for name, (shard,) in trainer.training_step.engine.state().items()}


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether both hold the same values under the same names."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
