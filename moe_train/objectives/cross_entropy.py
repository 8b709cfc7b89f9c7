"""Computes the cross-entropy over the targets of a padded batch, and label smoothing; see also model/logits.py.

B sequences, S tokens.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from moe_train.data.batch import IGNORED, Batch
from moe_train.model.logits import LogProbabilities, at_targets, mean_over_vocabulary


def mean_over_targets(values: Float[Tensor, "B S"], batch: Batch) -> Float[Tensor, ""]:
    """Returns the sum of `values` at the positions with a target, divided by the number of such positions.

    The number is what a batch of this size has on average in the global batch; so the mean of the results of all
    microbatches and ranks is exactly the mean over all targets of the update, however these are distributed.
    """
    counts = batch.targets != IGNORED
    mean_per_sequence = batch.targets_per_sequence
    number = counts.sum() if mean_per_sequence is None else len(batch.targets) * mean_per_sequence
    return torch.where(counts, values, 0.0).sum() / number


def cross_entropy(log_p: LogProbabilities, batch: Batch) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Returns the cross-entropy to the targets and to the uniform distribution, in nats, as means over targets."""
    task = mean_over_targets(-at_targets(log_p, batch.targets), batch)
    return task, mean_over_targets(-mean_over_vocabulary(log_p), batch)


def smoothed(task: Float[Tensor, ""], even: Float[Tensor, ""], smoothing: float) -> Float[Tensor, ""]:
    """Spreads `smoothing` of each target's probability over the whole vocabulary, the target included.

    Label smoothing, Szegedy et al., 1512.00567, sec. 7. `task` and `even` are the results of `cross_entropy`.
    """
    return (1 - smoothing) * task + smoothing * even
