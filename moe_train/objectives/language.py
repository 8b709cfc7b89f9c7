"""Implements next-token prediction, and the base of all objectives. B sequences, S tokens."""

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor

from moe_train.config.kinds.objective import ObjectiveConfig
from moe_train.data.batch import Batch
from moe_train.data.loader import next_tokens
from moe_train.model.logits import Logits, mean_cross_entropy
from moe_train.objectives.objective import TrainingLoss


class LanguageObjective:
    """Predicts the next token; the loss is the cross-entropy in nats, a mean over tokens."""

    def __init__(self, config: ObjectiveConfig):
        del config  # no options yet

    def batch(
        self, windows: Int[Tensor, "B S_plus_1"], sequence_ids: Int[Tensor, " B"], vocabulary: int, seed: int
    ) -> Batch:
        """Returns a batch that reads each token of a window but the last and predicts the next; nothing is random."""
        del vocabulary, seed
        return next_tokens(windows, sequence_ids)

    def __call__(self, logits: Logits, batch: Batch) -> Float[Tensor, ""]:
        """Returns the task loss of one microbatch, in fp32."""
        return mean_cross_entropy(logits, batch.targets)

    def training_loss(self, passes: Sequence[Logits], batch: Batch) -> TrainingLoss:
        """Returns the task loss of the only pass."""
        (logits,) = passes
        task = self(logits, batch)
        return TrainingLoss(total=task, task=task)
