"""Runs a model on batches as a recipe says: with its precision, and with draws and schedules that depend on the step.

Apart from the training step, because validation and translation run the model in the same way.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from moe_train.config.schema import Recipe
from moe_train.data.batch import Batch
from moe_train.model.transformer import Model
from moe_train.moe.routing import Pass, RouteContext
from moe_train.moe.rows import Rows
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
        forward_pass = self.forward_pass(step, pass_index)
        context = RouteContext(forward_pass, Rows(batch.sequence_ids, batch.tokens, batch.is_real))
        with self.precision(batch):
            if batch.source is None:
                return self.model(batch.tokens, context)
            of_source = Rows(batch.sequence_ids, batch.source, batch.source_is_real)
            return self.model(batch.tokens, context, batch.source, RouteContext(forward_pass, of_source))

    def forward_pass(self, step: int, pass_index: int = 0) -> Pass:
        """Returns what the layers know of a pass."""
        return Pass(
            training=self.model.training,
            progress=step / self.recipe.steps,
            random=RandomStream(self.recipe.seed, step, pass_index),
        )

    def precision(self, batch: Batch) -> torch.autocast:
        """Returns the context manager under which the model's matrix products have the recipe's precision."""
        use_bf16 = self.recipe.precision == "bf16"
        return torch.autocast(batch.tokens.device.type, torch.bfloat16, enabled=use_bf16)
