"""Sentence pairs of random words, for objectives that read pairs."""

import torch

from moe_train.config.schema import Recipe
from moe_train.data.batch import IGNORED, Batch
from moe_train.data.tokenizer import PAD_ID

FIRST_WORD = 2
"""After padding and the end of a sentence."""


def pairs(recipe: Recipe, step: int) -> Batch:
    """The global batch of update `step`: sentences of unequal lengths, of which the first fills its row."""
    size, length = recipe.data.global_batch, recipe.data.sequence_length
    generator = torch.Generator().manual_seed(1000 + step)
    words = torch.randint(FIRST_WORD, recipe.data.tokenizer.size, (2, size, length), generator=generator)
    lengths = length - 2 * torch.randint(0, 3, (2, size, 1), generator=generator)
    lengths[:, 0] = length
    source_is_real, is_real = torch.arange(length) < lengths
    read = torch.cat((torch.full((size, 1), PAD_ID), words[1, :, :-1]), dim=1)
    return Batch(
        tokens=torch.where(is_real, read, PAD_ID),
        targets=torch.where(is_real, words[1], IGNORED),
        sequence_ids=torch.arange(size) + size * step,
        is_real=is_real,
        source=torch.where(source_is_real, words[0], PAD_ID),
        source_is_real=source_is_real,
        targets_per_sequence=float(is_real.sum() / size),
    )
