"""Readers of logits on one worker are torch's own functions, bit for bit."""

import pytest
import torch
import torch.nn.functional as F
from tiny_model import normal

from moe_train.data.batch import IGNORED
from moe_train.model import logits as read
from moe_train.model.logits import Logits, VocabularyPart
from moe_train.parallel.axis import Axis

TARGETS = torch.tensor([[0, 1, IGNORED], [3, 4, 0]])


def both(dtype: torch.dtype) -> tuple[torch.Tensor, Logits]:
    values = normal(2, 3, 5).to(dtype).requires_grad_()
    return values, Logits.whole(values)


def assert_same(mine: torch.Tensor, wanted: torch.Tensor, values: torch.Tensor) -> None:
    """Values, and gradients of all positions unlike each other."""
    assert mine.dtype == torch.float32
    assert torch.equal(mine, wanted)
    weights = normal(*wanted.shape, seed=3)
    assert torch.equal(
        *(
            torch.autograd.grad((each * weights).sum(), values, retain_graph=True)[0]
            for each in (mine, wanted)
        )
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_on_one_worker_each_loss_is_torchs_to_the_bit(dtype):
    values, logits = both(dtype)
    flat = values.flatten(0, 1).float(), TARGETS.flatten()
    each = F.cross_entropy(*flat, ignore_index=IGNORED, reduction="none").view(2, 3)
    assert_same(read.cross_entropies(logits, TARGETS), each, values)
    mean = F.cross_entropy(*flat, ignore_index=IGNORED)
    assert_same(read.mean_cross_entropy(logits, TARGETS), mean, values)
    assert_same(read.log_sum_exp(logits), values.float().logsumexp(-1), values)
    log_p = torch.log_softmax(values.float(), -1)
    assert_same(read.mean_over_vocabulary(read.log_probabilities(logits)), log_p.mean(-1), values)
    of_targets = log_p.gather(2, TARGETS.clamp(min=0).unsqueeze(2)).squeeze(2)
    assert_same(read.at_targets(read.log_probabilities(logits), TARGETS), of_targets, values)


def test_each_prediction_has_a_loss_of_its_own():
    values, logits = both(torch.float32)
    log_p = torch.log_softmax(values.detach(), -1)
    expected = [
        [-log_p[b, s, t] if t != IGNORED else 0.0 for s, t in enumerate(row)] for b, row in enumerate(TARGETS)
    ]
    torch.testing.assert_close(read.cross_entropies(logits, TARGETS), torch.tensor(expected))


@pytest.mark.parametrize("size", [1, 5, 11, 12])
@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_parts_of_a_vocabulary_are_all_of_it_once_on_equally_many_rows(size, workers):
    parts = [VocabularyPart(size, Axis(workers, rank)) for rank in range(workers)]
    tokens = [token for part in parts for token in range(part.first, part.first + part.count)]
    assert tokens == list(range(size))
    assert size <= parts[0].rows * workers < size + workers
    assert {part.rows for part in parts} == {parts[0].rows}
