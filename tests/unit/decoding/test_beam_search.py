"""Beam search against exhaustive and greedy search over a random model of the next token."""

import itertools
import math

import pytest
import torch

from moe_train.decoding.beam_search import Hypotheses, beam_search, penalty
from moe_train.model.logits import LogProbabilities, VocabularyPart

VOCABULARY, START, END = 5, 0, 1
CPU = torch.device("cpu")


def table(seed: int, sentences: int = 3, sharpness: float = 1.0) -> torch.Tensor:
    """Log-probabilities [sentence, place, last token, next token]."""
    logits = torch.randn(sentences, 8, VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(seed))
    return torch.log_softmax(sharpness * logits, dim=-1)


def stepping(log_p: torch.Tensor):
    def step(prefixes: torch.Tensor) -> LogProbabilities:
        sentence = torch.arange(len(prefixes)).unsqueeze(1)
        values = log_p[sentence, prefixes.shape[2] - 1, prefixes[:, :, -1]]
        return LogProbabilities(values, VocabularyPart(VOCABULARY))

    return step


def search(log_p: torch.Tensor, beam_size: int, max_length: int, alpha: float, **options) -> Hypotheses:
    return beam_search(
        stepping(log_p),
        len(log_p),
        beam_size=beam_size,
        max_length=max_length,
        alpha=alpha,
        start=START,
        end=END,
        device=CPU,
        **options,
    )


def exhaustive(log_p: torch.Tensor, max_length: int, alpha: float) -> tuple[list[int], float]:
    """The best of all hypotheses of one sentence, each written down."""
    others = [token for token in range(VOCABULARY) if token != END]
    found = []
    for length in range(1, max_length + 1):
        for words in itertools.product(others, repeat=length - 1):
            hypothesis = [*words, END]
            before = [START, *words]
            total = sum(float(log_p[place, before[place], hypothesis[place]]) for place in range(length))
            found.append((total / ((5 + length) / 6) ** alpha, hypothesis))
    score, hypothesis = max(found)
    return hypothesis, score


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_beam_that_holds_every_prefix_finds_what_exhaustive_search_finds(seed, alpha):
    log_p, max_length = table(seed), 4
    found = search(log_p, (VOCABULARY - 1) ** (max_length - 1) + 1, max_length, alpha)
    for sentence in range(len(log_p)):
        tokens, score = exhaustive(log_p[sentence], max_length, alpha)
        assert found.tokens[sentence].tolist() == tokens + [END] * (max_length - len(tokens))
        assert float(found.scores[sentence]) == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_a_beam_of_one_is_greedy_search(seed):
    log_p, max_length = table(seed), 7
    found = search(log_p, 1, max_length, 0.6)
    for sentence in range(len(log_p)):
        tokens, last = [], START
        while last != END and len(tokens) < max_length - 1:
            last = int(log_p[sentence, len(tokens), last].argmax())
            tokens.append(last)
        if last != END:
            tokens.append(END)
        assert found.tokens[sentence].tolist() == tokens + [END] * (max_length - len(tokens))


def test_a_wider_beam_escapes_where_greedy_search_is_led_astray():
    log_p = torch.full((1, 8, VOCABULARY, VOCABULARY), -20.0)
    log_p[0, 0, START, [2, 3]] = torch.tensor([0.6, 0.4]).log()
    log_p[0, 1, 2, [END, 2, 3, 4]] = torch.tensor([0.3, 0.3, 0.2, 0.2]).log()
    log_p[0, 1, 3, END] = 0.0
    log_p[0, 2, :, END] = 0.0
    assert search(log_p, 1, 3, 0.0).tokens.tolist()[0][0] == 2
    wide = search(log_p, 2, 3, 0.0)
    assert wide.tokens.tolist() == [[3, END, END]]
    assert float(wide.scores[0]) == pytest.approx(math.log(0.4))


def test_a_length_penalty_favours_longer_hypotheses():
    log_p = torch.full((1, 8, VOCABULARY, VOCABULARY), -20.0)
    log_p[0, 0, START, [END, 2]] = torch.tensor([0.54, 0.46]).log()
    log_p[0, 1, 2, 3] = 0.0
    log_p[0, 2, 3, END] = 0.0
    assert search(log_p, 2, 4, 0.0).tokens.tolist()[0] == [END] * 4
    # ln 0.54 = -0.616 of 1 token; ln 0.46 = -0.777 of 3, over 8/6: -0.582.
    assert search(log_p, 2, 4, 1.0).tokens.tolist()[0] == [2, 3, END, END]
    assert penalty(1, 0.6) == 1.0
    assert penalty(7, 1.0) == 2.0


def test_a_sentence_does_not_depend_on_the_others_of_its_batch():
    log_p = table(5, sentences=4)
    together = search(log_p, 3, 6, 0.6)
    for sentence in range(4):
        alone = search(log_p[sentence : sentence + 1], 3, 6, 0.6)
        assert torch.equal(alone.tokens[0], together.tokens[sentence])
        assert alone.scores[0] == together.scores[sentence]


def test_it_ends_early_only_when_all_may_and_going_on_changes_nothing():
    log_p = table(6)
    log_p[:, 2, :, END] += 8.0
    log_p = torch.log_softmax(log_p, dim=-1)
    heard: list[bool] = []

    def never(is_done: bool) -> bool:
        heard.append(is_done)
        return False

    longer, shorter = search(log_p, 3, 8, 0.6, may_stop=never), search(log_p, 3, 8, 0.6)
    assert len(heard) == 8
    assert True in heard[:-1]
    assert torch.equal(longer.tokens, shorter.tokens)
    assert torch.equal(longer.scores, shorter.scores)
