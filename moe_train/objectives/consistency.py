"""Trains two passes to agree in their predictions: THOR's objective, for text and for translation.

Zuo et al., 2110.04260, sec. 3: L = CE(p1) + CE(p2) + alpha * (KL(p1||p2) + KL(p2||p1)) / 2, where the passes differ in
the experts drawn (routers/thor.py) and in their dropout masks; with one expert that is R-Drop (2106.14448). Both
sides of the divergence get gradients. As in the authors' code, the cross-entropy is label-smoothed and each term is
divided by the number of tokens; unlike there, logarithms come from log_softmax, which avoids log 0.
B sequences, S tokens.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from moe_train.config.kinds.objective import ConsistencyConfig
from moe_train.data.batch import Batch
from moe_train.model.logits import Logits, LogProbabilities, log_probabilities, sum_over_vocabulary
from moe_train.objectives.cross_entropy import cross_entropy, mean_over_targets, smoothed
from moe_train.objectives.language import LanguageObjective
from moe_train.objectives.objective import TrainingLoss


class ConsistencyObjective(LanguageObjective):
    """Trains two passes to agree; validates like LanguageObjective, with one pass and without smoothing."""

    def __init__(self, config: ConsistencyConfig):
        super().__init__(config)
        self.alpha, self.smoothing = config.alpha, config.label_smoothing

    def training_loss(self, passes: Sequence[Logits], batch: Batch) -> TrainingLoss:
        """Returns the sum of both cross-entropies and alpha times the divergence, in fp32."""
        first, second = map(log_probabilities, passes)
        cross_entropies = [cross_entropy(log_p, batch) for log_p in (first, second)]
        divergence = mean_over_targets(symmetric_kl(first, second), batch)
        return TrainingLoss(
            total=sum(smoothed(task, even, self.smoothing) for task, even in cross_entropies)
            + self.alpha * divergence,
            task=(cross_entropies[0][0] + cross_entropies[1][0]) / 2,
            parts={"consistency": divergence},
        )


def symmetric_kl(first: LogProbabilities, second: LogProbabilities) -> Float[Tensor, "B S"]:
    """Returns the symmetric KL divergence of two sets of log-probabilities at every position.

    (KL(p1||p2) + KL(p2||p1)) / 2 = sum_v (p1 - p2)(ln p1 - ln p2) / 2
    """
    terms = (first.values.exp() - second.values.exp()) * (first.values - second.values)
    return sum_over_vocabulary(terms, first.part) / 2
