"""Makes a batch of the recipe's shapes, of tokens that mean nothing."""

import torch

from moe_train.config.registry import build
from moe_train.config.resolve import spec_of
from moe_train.config.schema import Recipe
from moe_train.data.batch import Batch


def planned_batch(recipe: Recipe, sequences: int) -> Batch:
    """Returns a microbatch of one rank; pairs are as long as their stacks take, without padding."""
    ids, vocabulary = torch.arange(sequences), recipe.data.tokenizer.size
    if recipe.objective.reads_pairs(recipe):
        source, target = (
            torch.ones(sequences, stack.length, dtype=torch.int64) for stack in spec_of(recipe).stacks
        )
        is_real = torch.ones_like(target, dtype=torch.bool)
        return Batch(
            target,
            target,
            ids,
            is_real,
            source,
            torch.ones_like(source, dtype=torch.bool),
            float(target.shape[1]),
        )
    windows = torch.ones(sequences, recipe.data.sequence_length + 1, dtype=torch.int64)
    return build("objective", recipe.objective).batch(windows, ids, vocabulary=vocabulary, seed=recipe.seed)
