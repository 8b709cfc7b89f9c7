"""Short runs with compiled parts, on one rank.

The ranks import this, and not `conftest`, which has the types of all functions checked: a run does not compile that.
"""

import torch
from layout_run import tiny_step
from tiny_model import global_batch, share_of
from torch import Tensor
from torch._dynamo.utils import counters

from moe_train.distribute import compiled
from moe_train.parallel.world import World
from moe_train.step.training_step import TrainingStep

MODEL = ("model.dropout=0.1", "moe.every=2", "moe.shared_experts=1", "data.micro_batch=2")
STEPS = 5

Made = tuple[dict[str, Tensor], list[str], list[int]]


def made(world: World, *overrides: str) -> Made:
    """Losses, norms, gradients and parameters of some updates; the loads of each; the graphs there were after each."""
    torch._dynamo.reset()
    counters.clear()
    recipe, training_step = tiny_step(world, *MODEL, *overrides)
    numbers, loads, graphs, data = {}, [], [], training_step.mesh.data
    gradients = watched(training_step)
    for step in range(STEPS):
        batches = share_of(global_batch(recipe, step), data.rank, data.size, recipe.data.micro_batch)
        result = training_step.update(batches, step, False)
        of_step = {"loss": result.loss, "norm": torch.tensor(result.grad_norm), **result.losses, **gradients}
        numbers |= {f"{name} of step {step}": value.clone() for name, value in of_step.items()}
        loads.append(str([layer.load.tolist() for layers in result.stats for layer in layers]))
        graphs.append(counters["stats"]["unique_graphs"])
    shards = training_step.engine.shards
    return numbers | {name: shard.data.detach().clone() for name, shard in shards.items()}, loads, graphs


def watched(training_step: TrainingStep) -> dict[str, Tensor]:
    """The gradients that each update will be made of, where the engine keeps them with the parameters."""
    gradients: dict[str, Tensor] = {}
    engine, update = training_step.engine, training_step.engine.update

    def take(lr: float, norm: float) -> None:
        gradients.update(
            {
                name: shard.data.grad.clone()
                for name, shard in engine.shards.items()
                if shard.data.grad is not None
            }
        )
        update(lr, norm)

    engine.update = take
    return gradients


def with_and_without(world: World, backend: str, values: tuple[str, ...], *overrides: str) -> list[Made]:
    """The runs without and with these values of `engine.compile`."""
    compiled.BACKEND = backend
    return [made(world, *overrides, f"engine.compile={value}") for value in ("none", *values)]
