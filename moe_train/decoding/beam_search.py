"""Searches for the most probable sentences under any model of the next token, for a batch of sentences at once.

A hypothesis scores its log-probability over ((5 + length) / 6)^alpha   # Wu et al., 1609.08144, eq. 14, no coverage.
Hypotheses that end leave the beam, which shrinks; so a beam of 1 is greedy search, and a beam large enough for every
prefix is exhaustive. A sentence is done when nothing left in its beam can score higher.
B sentences, K beams, S tokens so far including the start token, N tokens at most.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moe_train.model.logits import LogProbabilities, best_continuations, only

Step = Callable[[Int[Tensor, "B K S"]], LogProbabilities]
"""Returns the log-probabilities [B, K, W] of the token after each prefix."""


class Hypotheses(NamedTuple):
    """Holds the best hypothesis of every sentence."""

    tokens: Int[Tensor, "B N"]
    """Without the start token, up to and including the end token, which also fills the rest."""
    scores: Float[Tensor, " B"]
    """Log-probability in nats divided by the length penalty."""


def penalty(length: int, alpha: float) -> float:
    """Returns the divisor of the log-probability of `length` tokens, the end token included."""
    return ((5 + length) / 6) ** alpha


def beam_search(
    step: Step,
    num_sentences: int,
    *,
    beam_size: int,
    max_length: int,
    alpha: float,
    start: int,
    end: int,
    device: torch.device,
    may_stop: Callable[[bool], bool] = bool,
) -> Hypotheses:
    """Searches for the best hypothesis of every sentence, of at most `max_length` tokens with the end token.

    `may_stop` gets whether all sentences are done and returns whether to stop; ranks that must call `step` the same
    number of times agree there.
    """
    prefixes = torch.full((num_sentences, beam_size, 1), start, device=device)
    scores = torch.full((num_sentences, beam_size), -torch.inf, device=device)
    scores[:, 0] = 0.0  # all beams begin with the same prefix, so one is enough
    best = Hypotheses(
        torch.full((num_sentences, max_length), end, device=device),
        torch.full((num_sentences,), -torch.inf, device=device),
    )
    for length in range(1, max_length + 1):
        log_p = step(prefixes)
        if length == max_length:
            log_p = only(log_p, end)
        scores, prefixes = _extended(scores, prefixes, log_p)
        ended = prefixes[:, :, -1] == end
        best = _better(best, prefixes, torch.where(ended, scores / penalty(length, alpha), -torch.inf))
        scores = scores.masked_fill(ended, -torch.inf)
        # At the largest length the penalty is the mildest.
        is_done = best.scores >= scores.max(1).values / penalty(max_length, alpha)
        if may_stop(bool(is_done.all())):
            break
    return best


def _extended(
    scores: Float[Tensor, "B K"], prefixes: Int[Tensor, "B K S"], log_p: LogProbabilities
) -> tuple[Float[Tensor, "B K"], Int[Tensor, "B K S_plus_1"]]:
    """Extends the prefixes by one token and returns the K best, best first."""
    best = best_continuations(scores, log_p)
    beams = best.beams.unsqueeze(2).expand(-1, -1, prefixes.shape[2])
    return best.scores, torch.cat((prefixes.gather(1, beams), best.tokens.unsqueeze(2)), dim=2)


def _better(best: Hypotheses, prefixes: Int[Tensor, "B K S"], worth: Float[Tensor, "B K"]) -> Hypotheses:
    """Returns, for every sentence, the better of `best` and the best of `prefixes`."""
    new_scores, beam = worth.max(1)
    is_better: Bool[Tensor, " B"] = new_scores > best.scores
    new_tokens = prefixes[torch.arange(len(beam), device=beam.device), beam, 1:]
    length = new_tokens.shape[1]
    tokens = best.tokens.clone()
    tokens[:, :length] = torch.where(is_better.unsqueeze(1), new_tokens, tokens[:, :length])
    return Hypotheses(tokens, torch.where(is_better, new_scores, best.scores))
