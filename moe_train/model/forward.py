"""Runs a model on batches of a run: with its precision, and with draws and schedules that depend on the step.

Apart from the training step, because validation and translation run the model in the same way.
"""

from dataclasses import dataclass

import torch

from moe_train.data.batch import Batch
from moe_train.model.model import Model, ModelOutput
from moe_train.moe.routing import Pass
from moe_train.random import RandomStream


@dataclass(frozen=True)
class Forward:
    """Runs forward passes of `model`, which may be distributed; then calls are collective."""

    model: Model
    seed: int
    steps: int
    """Updates of the whole run."""
    use_bf16: bool
    """Matrix products run in bf16."""

    def __call__(self, batch: Batch, step: int, pass_index: int = 0) -> ModelOutput:
        """Returns the model's output for a batch after `step` updates.

        `pass_index` numbers the passes of an objective that makes several: each has draws of its own.
        """
        with self.precision(batch):
            return self.model(*self.model.inputs(batch, self.forward_pass(step, pass_index)))

    def forward_pass(self, step: int, pass_index: int = 0) -> Pass:
        """Returns what the layers know of a pass."""
        return Pass(
            training=self.model.training,
            progress=step / self.steps,
            random=RandomStream(self.seed, step, pass_index),
        )

    def precision(self, batch: Batch) -> torch.autocast:
        """Returns the context manager under which the model's matrix products have their precision."""
        return torch.autocast(batch.tokens.device.type, torch.bfloat16, enabled=self.use_bf16)
