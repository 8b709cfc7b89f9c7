"""Runs a model on batches as a recipe says: with its precision, and with draws and schedules that depend on the step.

Apart from the training step, because validation and translation run the model in the same way.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from moe_train.config.schema import Recipe
from moe_train.data.batch import Batch
from moe_train.model.transformer import Model
from moe_train.moe.routing import RouteContext
from moe_train.random import RandomStream
from moe_train.results import MoEStats


@dataclass(frozen=True)
class Forward:
    """Forward passes of `model`, which may be distributed: calls are collective where it is."""

    model: Model
    recipe: Recipe

    def __call__(self, batch: Batch, step: int, pass_index: int = 0) -> tuple[Tensor, tuple[MoEStats, ...]]:
        """Returns the logits [B, S, V] and the statistics of the MoE layers, after `step` updates.

        `pass_index` numbers the passes of an objective that makes several: each has draws of its own.
        """
        context = self.context(batch, step, pass_index)
        with self.precision(batch):
            if batch.source is None:
                return self.model(batch.tokens, context)
            of_source = replace(context, token_values=batch.source, is_real=batch.source_is_real)
            return self.model(batch.tokens, context, batch.source, of_source)

    def context(self, batch: Batch, step: int, pass_index: int = 0) -> RouteContext:
        """Returns what the layers know of a pass."""
        return RouteContext(
            training=self.model.training,
            progress=step / self.recipe.steps,
            random=RandomStream(self.recipe.seed, step, batch.sequence_ids, pass_index),
            token_values=batch.tokens,
            is_real=batch.is_real,
        )

    def precision(self, batch: Batch) -> torch.autocast:
        """Returns the context manager under which the model's matrix products have the recipe's precision."""
        use_bf16 = self.recipe.precision == "bf16"
        return torch.autocast(batch.tokens.device.type, torch.bfloat16, enabled=use_bf16)
