"""Opens the data of a recipe: training batches, validation batches, tokenizer and vocabulary.

It alone knows whether a corpus has pairs or running text, and which objective makes the batches. Training and
`moe-train translate` both read through it.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from moe_train.config.kinds.router.hash import NUM_CONTEXTS
from moe_train.config.registry import build
from moe_train.config.resolve import spec_of
from moe_train.config.schema import Recipe
from moe_train.data.batch import Batch
from moe_train.data.cache import cache_dir
from moe_train.data.loader import Loader, MakeBatch, validation_batches
from moe_train.data.pair_loader import PairLoader, validation_pairs
from moe_train.data.prepare import PreparedData, prepare
from moe_train.data.tokenizer import Tokenizer
from moe_train.moe.routing import Vocabulary
from moe_train.moe.token_vectors import token_vectors
from moe_train.objectives.objective import Objective
from moe_train.parallel.mesh import Mesh

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Feed:
    """Holds a recipe and its corpus as tokens."""

    recipe: Recipe
    data: PreparedData

    @classmethod
    def open(cls, recipe: Recipe, folder: str | None, progress: Callable[[str], None]) -> "Feed":
        """Opens the tokens in the cache at `folder` (see `cache_dir`), made first if it has none.

        Raises DataError if the corpus cannot be read or has too little text.
        """
        return cls(recipe, prepare(recipe.data, cache_dir(folder), progress))

    def training(self) -> Loader | PairLoader:
        """Returns the training batches of all steps."""
        length, batch = self.recipe.data.sequence_length, self.recipe.data.global_batch
        if not self.recipe.data.corpus.parallel:
            return Loader(self.data.train, length, batch, self.recipe.seed, self._batches(self.recipe.seed))
        loader = PairLoader(self.data.train, length, batch, self.recipe.seed)
        if loader.pairs.num_too_long:
            log.info(
                "left out of training: pairs with a side of more than data.sequence_length=%d tokens (%d of %d)",
                length,
                loader.pairs.num_too_long,
                self.data.train.num_documents,
            )
        return loader

    def validation(self, num_sequences: int, mesh: Mesh, at_once: int | None = None) -> list[Batch]:
        """Returns this rank's share of `num_sequences` validation sequences or pairs, on its device.

        A batch has as many as a pass of training and only whole routing groups; with `at_once`, so many of any group.
        """
        degree = mesh.data.size
        share = (
            self.data.validation,
            self.recipe.data.sequence_length,
            num_sequences,
            mesh.data.rank,
            degree,
            at_once or self.recipe.data.micro_batch or self.recipe.data.global_batch // degree,
            self.recipe.moe.group_sequences if at_once is None else 1,
        )
        batches = (
            validation_pairs(*share)
            if self.recipe.data.corpus.parallel
            else validation_batches(*share, self._batches(seed=0))  # the same set whatever the run's seed
        )
        return [batch.to(mesh.world.device) for batch in batches]

    def tokenizer(self) -> Tokenizer:
        """Returns the tokenizer that made the tokens."""
        return read_tokenizer(self.recipe, self.data.tokenizer_file)

    def vocabulary(self) -> Vocabulary:
        """Returns the vocabulary, whose counts and vectors are made when a router's table asks for them."""
        size = spec_of(self.recipe).vocabulary_size

        def vectors() -> Tensor:
            return token_vectors(torch.from_numpy(self.data.count_neighbours(size, NUM_CONTEXTS)))

        # Every layer with a table asks, and has the same answer.
        return Vocabulary(size, cache(lambda: torch.from_numpy(self.data.count_tokens(size))), cache(vectors))

    def _batches(self, seed: int) -> MakeBatch:
        """Returns what the objective makes of windows of text."""
        objective: Objective = build("objective", self.recipe.objective)
        return partial(objective.batch, vocabulary=self.recipe.data.tokenizer.size, seed=seed)


def read_tokenizer(recipe: Recipe, file: Path) -> Tokenizer:
    """Returns the tokenizer of a recipe as it was saved in `file`."""
    tokenizer: Tokenizer = build("data.tokenizer", recipe.data.tokenizer)
    tokenizer.load(file)
    return tokenizer
