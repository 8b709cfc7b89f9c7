"""Defines the interface of objectives: how many passes over a batch the model makes, and the loss of their outputs.

B sequences, S tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from jaxtyping import Float, Int
from torch import Tensor

from moe_train.data.batch import Batch
from moe_train.model.logits import Logits


@dataclass(frozen=True)
class TrainingLoss:
    """Holds the loss of one microbatch."""

    total: Float[Tensor, ""]
    """The loss to differentiate, together with the routers' auxiliary losses of every pass."""
    task: Float[Tensor, ""]
    """The loss to report, in nats per token: a mean over passes, comparable with other objectives."""
    parts: Mapping[str, Float[Tensor, ""]] = field(default_factory=dict)
    """Other terms of the total by name, unscaled, to report."""

    def detached(self) -> "TrainingLoss":
        """Returns the same numbers detached from the graph."""
        parts = {name: part.detach() for name, part in self.parts.items()}
        return TrainingLoss(self.total.detach(), self.task.detach(), parts)


class Objective(Protocol):
    """Makes batches and computes losses; built as `Objective(config)`, which also gives the number of passes."""

    def batch(
        self, windows: Int[Tensor, "B S_plus_1"], sequence_ids: Int[Tensor, " B"], vocabulary: int, seed: int
    ) -> Batch:
        """Returns what the model reads and predicts of windows of text, a function of (seed, sequence) only.

        The objective's own tokens come after the `vocabulary` of the tokenizer.
        """
        ...

    def __call__(self, logits: Logits, batch: Batch) -> Float[Tensor, ""]:
        """Returns the task loss of one pass, which validation reports."""
        ...

    def training_loss(self, passes: Sequence[Logits], batch: Batch) -> TrainingLoss:
        """Returns the loss of one microbatch from the logits of all passes over it."""
        ...
