"""Two passes that must agree: THOR's loss where the answer is known."""

import math

import pytest
import torch
import torch.nn.functional as F
from tiny_model import normal

from moe_train.config.kinds.objective import ConsistencyConfig
from moe_train.data.batch import IGNORED, Batch
from moe_train.model.logits import Logits, LogProbabilities, VocabularyPart
from moe_train.objectives.consistency import ConsistencyObjective, symmetric_kl
from moe_train.objectives.objective import TrainingLoss

TARGETS = torch.tensor([[1, 4, 0], [2, 2, 3]])
BATCH = Batch(TARGETS, TARGETS, torch.arange(2))


def objective(alpha: float = 5.0, smoothing: float = 0.0) -> ConsistencyObjective:
    return ConsistencyObjective(ConsistencyConfig(alpha=alpha, label_smoothing=smoothing))


def loss_of(made: ConsistencyObjective, passes: list[torch.Tensor], batch: Batch = BATCH) -> TrainingLoss:
    return made.training_loss([Logits.whole(each) for each in passes], batch)


def divergence_of(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    part = VocabularyPart(first.shape[-1])
    return symmetric_kl(LogProbabilities(first, part), LogProbabilities(second, part))


def logits(seed: int) -> torch.Tensor:
    return normal(2, 3, 5, seed=seed).requires_grad_()


def cross_entropy(of_pass: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    return F.cross_entropy(of_pass.flatten(0, 1), TARGETS.flatten(), label_smoothing=smoothing)


def test_the_divergence_is_the_mean_of_both_kullback_leibler_divergences():
    first, second = (torch.log_softmax(normal(4, 10, 30, seed=seed).double(), 2) for seed in (1, 2))
    both = F.kl_div(second, first, reduction="none", log_target=True) + F.kl_div(
        first, second, reduction="none", log_target=True
    )
    torch.testing.assert_close(divergence_of(first, second), both.sum(2) / 2, rtol=1e-12, atol=1e-12)


def test_the_divergence_by_hand():
    first, second = torch.tensor([[[0.5, 0.5]]]).log(), torch.tensor([[[0.75, 0.25]]]).log()
    # (-1/4 ln(2/3) + 1/4 ln 2) / 2 = ln(3) / 8
    assert divergence_of(first, second).item() == pytest.approx(math.log(3) / 8, rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_both_cross_entropies_and_alpha_times_the_divergence(smoothing):
    first, second = logits(1), logits(2)
    loss = loss_of(objective(3.0, smoothing), [first, second])
    divergence = divergence_of(*(torch.log_softmax(of, 2) for of in (first, second))).mean()
    expected = cross_entropy(first, smoothing) + cross_entropy(second, smoothing) + 3 * divergence
    torch.testing.assert_close(loss.total, expected)
    torch.testing.assert_close(loss.parts["consistency"], divergence)


def test_the_reported_loss_is_a_plain_mean_over_the_passes():
    first, second = logits(1), logits(2)
    loss = loss_of(objective(3.0, smoothing=0.1), [first, second])
    torch.testing.assert_close(loss.task, (cross_entropy(first) + cross_entropy(second)) / 2)
    torch.testing.assert_close(
        objective(3.0, smoothing=0.1)(Logits.whole(first), BATCH), cross_entropy(first)
    )


def test_equal_passes_lose_twice_the_cross_entropy_and_nothing_else():
    loss = loss_of(objective(), [logits(1), logits(1)])
    assert loss.parts["consistency"].item() == 0
    torch.testing.assert_close(loss.total, 2 * cross_entropy(logits(1)))


def test_both_sides_of_the_divergence_have_gradients():
    first, second = logits(1), logits(2)
    loss_of(objective(1.0), [first, second]).parts["consistency"].backward()
    for side in (first, second):
        assert side.grad is not None
        assert side.grad.abs().max() > 1e-3


def test_a_probability_that_underflows_leaves_the_loss_finite():
    sure = torch.zeros(2, 3, 5)
    sure[..., 0] = 1e4
    loss = loss_of(objective(), [sure.bfloat16(), -sure.bfloat16()])
    assert loss.total.isfinite()
    assert loss.total.dtype == torch.float32


def test_padding_counts_in_no_term_of_the_loss():
    targets = torch.tensor([[1, 4, IGNORED], [2, IGNORED, IGNORED]])
    batch = Batch(TARGETS, targets, torch.arange(2), targets_per_sequence=1.5)
    first, second = logits(1), logits(2)
    loss = loss_of(objective(3.0, smoothing=0.1), [first, second], batch)
    real = targets != IGNORED
    kept = [of[real].unsqueeze(0) for of in (first, second)]
    alone = Batch(targets[real].unsqueeze(0), targets[real].unsqueeze(0), torch.arange(1))
    torch.testing.assert_close(loss.total, loss_of(objective(3.0, smoothing=0.1), kept, alone).total)
    loss.total.backward()
    assert first.grad is not None
    assert (first.grad[~real] == 0).all()
