"""Small recipes, contexts, layers and models for the tests of the core, always the same numbers."""

from dataclasses import replace
from pathlib import Path

import torch
from pairs import pairs
from torch import Tensor

from moe_train.config.kinds.router.router import RouterConfig
from moe_train.config.load import load_recipe
from moe_train.config.registry import build
from moe_train.config.resolve import moe_spec, spec_of
from moe_train.config.schema import Recipe
from moe_train.data.batch import Batch
from moe_train.distribute.apply import distribute
from moe_train.model.count import count
from moe_train.model.model import Model
from moe_train.moe.layers.layer import MoELayer
from moe_train.moe.layers.layer import moe_layer as build_layer
from moe_train.moe.routing import Pass, RouteContext, Router, Vocabulary
from moe_train.moe.rows import Rows
from moe_train.objectives.objective import Objective
from moe_train.parallel.mesh import Mesh
from moe_train.parallel.world import World
from moe_train.random import RandomStream

TOKENS = 300
"""The tiny recipe's vocabulary."""


def tiny_recipe(*overrides: str) -> Recipe:
    """The recipe of tiny_model.yaml with `overrides`."""
    return load_recipe(Path(__file__).with_name("tiny_model.yaml"), overrides)


def one_worker() -> Mesh:
    """The mesh of a run with one worker on the CPU."""
    return Mesh(World(0, 1, 0, 1, torch.device("cpu")))


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def context(
    sequences: int, length: int, training: bool = False, step: int = 0, seed: int = 0, first: int = 0
) -> RouteContext:
    """A context of `sequences` sequences, numbered from `first`, of `length` tokens."""
    ids = torch.arange(first, first + sequences)
    tokens = (ids.unsqueeze(1) * 7919 + torch.arange(length) * 104729) % TOKENS
    return RouteContext(Pass(training, 0.0, RandomStream(seed, step)), Rows(ids, tokens))


def with_padding(context: RouteContext, is_real: Tensor) -> RouteContext:
    """The same context with padding where `is_real` is false."""
    return replace(context, rows=replace(context.rows, is_real=is_real))


def gate(config: RouterConfig, logits: Tensor, group: int = 1) -> Router:
    """A router whose weight matrix gives the i-th one-hot row the i-th row of `logits`; what else it learns is 0."""
    made = build(
        "moe.router",
        config,
        d_model=len(logits),
        num_experts=logits.shape[1],
        group=group,
        site="layers.0.router",
    )
    for parameter in made.parameters():
        parameter.data.zero_()
    made.weight.data.copy_(logits)
    return made


def vocabulary(recipe: Recipe) -> Vocabulary:
    """The tiny recipe's tokens, the n-th of which occurs n times, with vectors that say nothing."""
    return vocabulary_of(spec_of(recipe).vocabulary_size)


def vocabulary_of(size: int) -> Vocabulary:
    """The same of `size` tokens."""
    return Vocabulary(size, lambda: torch.arange(size), lambda: normal(size, 16).double())


def moe_layer(recipe: Recipe) -> MoELayer:
    """An MoE layer of the recipe's shape with standard normal weights, scaled by 1 / sqrt(fan in)."""
    assert isinstance(recipe.moe.num_experts, int)
    layer = build_layer(moe_spec(recipe, recipe.moe.num_experts), "layers.0")
    with torch.no_grad():
        for index, parameter in enumerate(layer.parameters()):
            fan_in = parameter.shape[-2] if parameter.ndim > 1 else 1
            parameter.copy_(normal(*parameter.shape, seed=100 + index) / fan_in**0.5)
    return layer


def tiny_transformer(recipe: Recipe) -> Model:
    """The recipe's model on one worker, with its initial values, and gradients as autograd makes them."""
    spec, words = spec_of(recipe), vocabulary(recipe)
    return distribute(spec, one_worker(), seed=recipe.seed, vocabulary=words).model


def flops_per_token(recipe: Recipe) -> int:
    """What a token of text costs in training."""
    return count(spec_of(recipe)).flops_per_token(recipe.data.sequence_length, recipe.objective.num_passes)


def global_batch(recipe: Recipe, step: int) -> Batch:
    """What the objective makes of random tokens: the whole global batch of update `step`."""
    if recipe.objective.reads_pairs(recipe):
        return pairs(recipe, step)
    generator = torch.Generator().manual_seed(1000 + step)
    size, length = recipe.data.global_batch, recipe.data.sequence_length
    tokens = torch.randint(0, recipe.data.tokenizer.size, (size, length + 1), generator=generator)
    objective: Objective = build("objective", recipe.objective)
    ids = torch.arange(size) + size * step
    return objective.batch(tokens, ids, vocabulary=recipe.data.tokenizer.size, seed=recipe.seed)


def share_of(batch: Batch, rank: int, workers: int, micro: int | None = None) -> list[Batch]:
    """The microbatches of one worker: its contiguous share, cut into pieces of `micro` sequences."""
    size = batch.tokens.shape[0] // workers
    step = micro or size
    starts = range(rank * size, (rank + 1) * size, step)
    return [batch.sequences(i, i + step) for i in starts]
