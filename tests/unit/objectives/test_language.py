"""Next-token prediction where the answer is known."""

import math

import pytest
import torch

from moe_train.config.kinds.objective import LanguageConfig
from moe_train.data.batch import Batch
from moe_train.model.logits import Logits
from moe_train.objectives.language import LanguageObjective


def batch(targets: list[list[int]]) -> Batch:
    tokens = torch.tensor(targets)
    return Batch(tokens, tokens, torch.arange(len(targets)))


def loss_of(logits: torch.Tensor, targets: list[list[int]]) -> torch.Tensor:
    return LanguageObjective(LanguageConfig())(Logits.whole(logits), batch(targets))


def test_a_model_that_knows_nothing_loses_the_log_of_the_vocabulary():
    loss = loss_of(torch.zeros(2, 3, 50), [[1, 2, 3], [4, 5, 6]])
    assert loss.item() == pytest.approx(math.log(50))


def test_the_loss_is_a_mean_over_tokens():
    # Probabilities of the targets: 1/2 and 1/8.
    logits = torch.tensor([[[math.log(2), 0.0, 0.0], [math.log(6), math.log(1), 0.0]]])
    loss = loss_of(logits, [[0, 2]])
    assert loss.item() == pytest.approx((math.log(2) + math.log(8)) / 2)


def test_the_loss_of_bf16_logits_is_in_fp32():
    assert loss_of(torch.zeros(1, 1, 4).bfloat16(), [[0]]).dtype == torch.float32
