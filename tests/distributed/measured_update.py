"""One update on real workers under the counters of `moe-train plan`."""

from contextlib import ExitStack
from dataclasses import dataclass

from tiny_model import global_batch, share_of, tiny_recipe, vocabulary
from torch import Tensor

from moe_train.config.layout import plan_of
from moe_train.parallel.mesh import Mesh
from moe_train.parallel.world import World
from moe_train.planner.collectives import Collectives, Moved
from moe_train.planner.flops import Flops
from moe_train.planner.held import HeldGradients, optimizer_bytes, parameter_bytes
from moe_train.planner.live import LiveBytes
from moe_train.planner.watch import Watch
from moe_train.step.training_step import TrainingStep


@dataclass
class Measured:
    """What an update cost one rank."""

    moved: Moved
    start: Moved
    """Before the update."""
    flops: int
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    peak_bytes: int
    before_backward_bytes: int
    """Of live tensors, where the first backward pass begins."""


def measure(world: World, *cases: tuple[str, ...]) -> list[Measured]:
    """The costs of the first update of each of several recipes, one after the other."""
    return [_measured(world, case) for case in cases]


def _measured(world: World, overrides: tuple[str, ...]) -> Measured:
    recipe = tiny_recipe(*overrides)
    mesh = Mesh.build(plan_of(recipe.parallel, world.size), world)
    batches = share_of(global_batch(recipe, 0), mesh.data.rank, mesh.data.size, recipe.data.micro_batch)
    live, flops, collectives = LiveBytes(), Flops(), Collectives(mesh.groups())
    with ExitStack() as modes:
        modes.enter_context(live.following_resizes())
        modes.enter_context(Watch(live, flops, collectives))
        step = TrainingStep.build(recipe, mesh, vocabulary(recipe))
        start = collectives.take()
        live.restart_peak()
        gradients, seen = HeldGradients(step.engine), list[int]()
        backward = step.engine.backward

        def counted(loss: Tensor, is_last: bool) -> None:
            seen.append(live.now)
            backward(loss, is_last)

        step.engine.backward = counted  # type: ignore[method-assign]
        step.update([batch.each(lambda tensor: tensor.clone()) for batch in batches], 0, False)
        return Measured(
            collectives.take(),
            start,
            flops.total,
            parameter_bytes(step.engine),
            gradients.bytes,
            optimizer_bytes(step.engine),
            live.peak,
            seen[0],
        )
