"""Trains our model for the comparison with other systems, and gives them the same weights and the same optimizer."""

from collections.abc import Iterable

import torch
from layout_run import tiny_step
from tiny_model import global_batch, share_of, tiny_recipe, tiny_transformer
from torch import Tensor, nn

from moe_train.config.schema import Recipe
from moe_train.data.batch import Batch
from moe_train.parallel.world import World

STEPS = 20

SAME = ("moe.capacity_factor=null", "moe.eval_capacity_factor=null", "moe.router.jitter=0", "optim.clip=null")
"""What no system does alike is off: tokens that are dropped, random draws, the clip."""


def train_ours(world: World, *overrides: str) -> list[float]:
    """Returns the losses of STEPS updates of our model. Collective."""
    recipe, training_step = tiny_step(world, *SAME, *overrides)
    data = training_step.mesh.data
    return [
        training_step.update(share_of(batch_of(recipe, step), data.rank, data.size), step, False).mean_loss
        for step in range(STEPS)
    ]


def batch_of(recipe: Recipe, step: int) -> Batch:
    """Returns the global batch of update `step`: one of two, so that there is something to learn."""
    return global_batch(recipe, step % 2)


def given(*overrides: str) -> tuple[Recipe, dict[str, Tensor]]:
    """Returns the recipe of an oracle, and copies of our initial weights, which are the same on every layout."""
    recipe = tiny_recipe(*SAME, *overrides)
    return recipe, {
        name: value.detach().clone() for name, value in tiny_transformer(recipe).state_dict().items()
    }


def optimizer_of(recipe: Recipe, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Returns torch's optimizer with the recipe's settings; weight decay is not among them."""
    config = recipe.optim
    if config.kind == "sgd":
        return torch.optim.SGD(parameters, lr=config.lr)
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(parameters, lr=config.lr, betas=betas, eps=config.epsilon, weight_decay=0.0)
