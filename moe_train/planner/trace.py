"""Traces one update of a recipe on rank 0 of any number, with neither storage nor other processes.

The model, its distribution, the engine, the optimizer and the training step are those of a run. Tensors are fake, so
they have sizes and no values; the process group is torch's fake one, whose collectives return at once. DeepSpeed
runs too, with its buckets and ranges.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode

from moe_train.config.kinds.dispatch import AllToAllDispatchConfig
from moe_train.config.layout import plan_of
from moe_train.config.resolve import spec_of, uncompiled
from moe_train.config.schema import Recipe
from moe_train.data.batch import Batch
from moe_train.layout.rows import expected_rows
from moe_train.layout.units import degrees
from moe_train.moe.dispatch.divided import DividedDispatcher
from moe_train.moe.layers.layer import moe_layers_of
from moe_train.moe.layers.routed import RoutedLayer
from moe_train.moe.routing import Vocabulary
from moe_train.parallel.mesh import Mesh
from moe_train.parallel.world import World
from moe_train.planner.assumed import AssumedValues
from moe_train.planner.batches import planned_batch
from moe_train.planner.collectives import Collectives, Moved
from moe_train.planner.dispatch import PlannedDispatcher
from moe_train.planner.flops import Flops
from moe_train.planner.held import HeldGradients, optimizer_bytes, parameter_bytes
from moe_train.planner.live import LiveBytes
from moe_train.planner.watch import Watch
from moe_train.planner.zero import fake_tensors_answer_deepspeed
from moe_train.step.training_step import TrainingStep

TRACED_MICROBATCHES = 3
"""Of more microbatches, those after the second are alike."""


@dataclass(frozen=True)
class Trace:
    """Holds what one update costs rank 0."""

    degrees: str
    microbatches: int
    sequences: int
    """Of a microbatch."""
    flops: int
    collectives: Moved
    start: Moved
    """The collectives before the first update."""
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    peak_bytes: int
    """The most bytes of live tensors at once."""


class _Alone(World):
    """Is a rank whose others are not there: what rank 0 sends is its own."""

    def from_main(self, value: Any) -> Any:
        return value


def alone(workers: int) -> World:
    """Returns rank 0 of `workers` that do not exist."""
    return _Alone(0, workers, 0, 1, torch.device("cpu"))


def trace(recipe: Recipe, workers: int, imbalance: float = 1.0) -> Trace:
    """Returns the costs of an update on `workers` workers, where the busiest receives `imbalance` times the mean."""
    recipe = uncompiled(replace(recipe, moe=replace(recipe.moe, dispatch=AllToAllDispatchConfig())))
    plan = plan_of(recipe.parallel, workers)
    share = recipe.data.global_batch // plan.data
    number = share // (recipe.data.micro_batch or share)
    with fake_group(workers, of_one=recipe.engine.kind != "native"):
        mesh = Mesh.build(plan, alone(workers))
        batch = planned_batch(recipe, share // number)
        if number <= TRACED_MICROBATCHES:
            return _traced(recipe, mesh, batch, number, imbalance)
        fewer, more = (_traced(recipe, mesh, batch, n, imbalance) for n in (2, TRACED_MICROBATCHES))
    times = number - TRACED_MICROBATCHES
    return replace(
        more,
        microbatches=number,
        flops=more.flops + times * (more.flops - fewer.flops),
        collectives=more.collectives + (more.collectives - fewer.collectives) * times,
    )


@contextmanager
def fake_group(workers: int, *, of_one: bool = False) -> Iterator[None]:
    """Makes this process rank 0 of `workers` that do not exist, for the duration of a block.

    A single worker becomes a group of one if an engine wants that.
    """
    if workers == 1 and not of_one:
        yield
        return
    dist.init_process_group("fake", rank=0, world_size=workers)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _traced(recipe: Recipe, mesh: Mesh, batch: Batch, number: int, imbalance: float) -> Trace:
    """Builds the model and traces one update from `number` microbatches like `batch`."""
    live, flops, collectives = LiveBytes(), Flops(), Collectives(mesh.groups())
    with ExitStack() as modes:
        fake = modes.enter_context(FakeTensorMode())
        assumed = modes.enter_context(AssumedValues())
        modes.enter_context(live.following_resizes())
        modes.enter_context(fake_tensors_answer_deepspeed())
        modes.enter_context(Watch(live, flops, collectives))
        step = TrainingStep.build(recipe, mesh, Vocabulary.without_text(recipe.data.tokenizer.size))
        plan_dispatch(step, recipe, imbalance)
        start = collectives.take()
        assumed.is_building = False
        live.restart_peak()
        gradients = HeldGradients(step.engine)
        step.update([batch.each(fake.from_tensor) for _ in range(number)], 0, False)
    return Trace(
        degrees=degrees(mesh.plan),
        microbatches=number,
        sequences=len(batch.tokens),
        flops=flops.total,
        collectives=collectives.take(),
        start=start,
        parameter_bytes=parameter_bytes(step.engine),
        gradient_bytes=gradients.bytes,
        optimizer_bytes=optimizer_bytes(step.engine),
        peak_bytes=live.peak,
    )


def plan_dispatch(step: TrainingStep, recipe: Recipe, imbalance: float) -> None:
    """Gives every layer that dispatches rows a dispatcher that expects their numbers."""
    lengths = [stack.length for stack in spec_of(recipe).stacks for _ in stack.moe]
    for (_, layer), length in zip(moe_layers_of(step.engine.model), lengths, strict=True):
        expected = expected_rows(layer.spec, length) if isinstance(layer, RoutedLayer) else None
        built = layer.dispatcher
        if isinstance(built, DividedDispatcher):
            layer.dispatcher = replace(
                built, whole=PlannedDispatcher(built.whole, expected, imbalance, built.num_slices)
            )
        else:
            layer.dispatcher = PlannedDispatcher(built, expected, imbalance)
