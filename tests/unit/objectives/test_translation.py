"""Label-smoothed cross-entropy over the real tokens of target sentences."""

import math

import pytest
import torch
import torch.nn.functional as F
from tiny_model import normal

from moe_train.config.check import problems
from moe_train.config.kinds.objective import ConsistencyConfig, LanguageConfig, TranslationConfig
from moe_train.config.kinds.parallel_corpus import ParallelFilesCorpusConfig
from moe_train.config.schema import DataConfig, ModelConfig, Recipe
from moe_train.data.batch import IGNORED, Batch
from moe_train.model.logits import Logits
from moe_train.objectives.cross_entropy import mean_over_targets, smoothed
from moe_train.objectives.translation import TranslationObjective

TARGETS = torch.tensor([[3, 1, IGNORED], [2, 2, 1], [1, IGNORED, IGNORED], [4, 1, IGNORED]])


def batch_of(rows: slice) -> Batch:
    """A part of a global batch with 8 targets in 4 sequences."""
    targets = TARGETS[rows]
    return Batch(targets.clamp(min=0), targets, torch.arange(len(targets)), targets_per_sequence=2.0)


def objective(smoothing: float) -> TranslationObjective:
    return TranslationObjective(TranslationConfig(label_smoothing=smoothing))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_torchs_smoothed_cross_entropy_over_real_targets(smoothing):
    logits = normal(4, 3, 5, seed=1)
    loss = objective(smoothing).training_loss([Logits.whole(logits)], batch_of(slice(None)))
    flat = logits.flatten(0, 1), TARGETS.flatten()
    torch.testing.assert_close(
        loss.total, F.cross_entropy(*flat, ignore_index=IGNORED, label_smoothing=smoothing)
    )
    torch.testing.assert_close(loss.task, F.cross_entropy(*flat, ignore_index=IGNORED))
    torch.testing.assert_close(loss.task, objective(smoothing)(Logits.whole(logits), batch_of(slice(None))))


def test_parts_with_unequally_many_targets_add_up_to_the_whole():
    logits = normal(4, 3, 5, seed=1).requires_grad_()
    whole = objective(0.1).training_loss([Logits.whole(logits)], batch_of(slice(None))).total
    (expected,) = torch.autograd.grad(whole, logits)
    parts = [slice(0, 2), slice(2, 4)]  # 5 and 3 targets
    mean = (
        sum(
            objective(0.1).training_loss([Logits.whole(logits[part])], batch_of(part)).total for part in parts
        )
        / 2
    )
    (found,) = torch.autograd.grad(mean, logits)
    torch.testing.assert_close(mean, whole)
    torch.testing.assert_close(found, expected)


def test_smoothing_by_hand():
    # p = (1/2, 1/4, 1/4), target 0: 0.9 ln 2 + 0.1 (ln 2 + 2 ln 4) / 3
    log_p = torch.tensor([0.5, 0.25, 0.25]).log()
    found = smoothed(-log_p[0], -log_p.mean(), 0.1)
    assert found.item() == pytest.approx(0.9 * math.log(2) + 0.1 * (5 * math.log(2)) / 3)


def test_a_mean_over_targets_without_a_global_number_is_over_those_of_the_batch():
    batch = Batch(TARGETS.clamp(min=0), TARGETS, torch.arange(4))
    values = torch.where(TARGETS == IGNORED, torch.nan, 2.0)
    assert mean_over_targets(values, batch).item() == 2.0


def recipe(objective_config, architecture: str, parallel: bool) -> Recipe:
    made = Recipe(objective=objective_config, model=ModelConfig(architecture=architecture))  # type: ignore[arg-type]
    if parallel:
        made.data = DataConfig(corpus=ParallelFilesCorpusConfig(path="x"))
    return made


@pytest.mark.parametrize(
    ("objective_config", "architecture", "parallel", "key"),
    [
        (TranslationConfig(), "encoder_decoder", True, None),
        (ConsistencyConfig(), "encoder_decoder", True, None),
        (ConsistencyConfig(), "decoder", False, None),
        (TranslationConfig(), "encoder_decoder", False, "data.corpus.kind"),
        (TranslationConfig(), "decoder", True, "model.architecture"),
        (ConsistencyConfig(), "encoder_decoder", False, "data.corpus.kind"),
        (ConsistencyConfig(), "decoder", True, "data.corpus.kind"),
        (LanguageConfig(), "decoder", True, "data.corpus.kind"),
        (TranslationConfig(label_smoothing=1.0), "encoder_decoder", True, "objective.label_smoothing"),
    ],
)
def test_pairs_go_with_objectives_and_models_that_read_them(objective_config, architecture, parallel, key):
    found = [problem.key for problem in problems(recipe(objective_config, architecture, parallel))]
    assert found == ([] if key is None else [key])


@pytest.mark.parametrize(
    ("key", "value"), [("beam_size", 0), ("length_penalty", -0.1), ("sentences", -1)], ids=str
)
def test_decoding_that_makes_no_sense_is_refused(key, value):
    made = recipe(TranslationConfig(), "encoder_decoder", True)
    setattr(made.decoding, key, value)
    assert [problem.key for problem in problems(made)] == [f"decoding.{key}"]
