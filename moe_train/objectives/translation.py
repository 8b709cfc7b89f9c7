"""Implements translation: the decoder predicts the target sentence, given the source.

Vaswani et al., 1706.03762, sec. 5.4: cross-entropy with label smoothing, over the real tokens of the targets, `<eos>`
included. Training and validation report the cross-entropy without smoothing.
B sequences, S tokens.
"""

from collections.abc import Sequence

from moe_train.config.kinds.objective import TranslationConfig
from moe_train.data.batch import Batch
from moe_train.model.logits import Logits, log_probabilities
from moe_train.objectives.cross_entropy import cross_entropy, smoothed
from moe_train.objectives.language import LanguageObjective
from moe_train.objectives.objective import TrainingLoss


class TranslationObjective(LanguageObjective):
    """Trains with label smoothing; validates like LanguageObjective, by cross-entropy in nats over target tokens."""

    def __init__(self, config: TranslationConfig):
        super().__init__(config)
        self.smoothing = config.label_smoothing

    def training_loss(self, passes: Sequence[Logits], batch: Batch) -> TrainingLoss:
        """Returns the smoothed cross-entropy of the only pass, in fp32."""
        (logits,) = passes
        task, even = cross_entropy(log_probabilities(logits), batch)
        return TrainingLoss(total=smoothed(task, even, self.smoothing), task=task)
