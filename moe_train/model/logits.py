"""Defines the logits of a model and all that reads them, whether or not they are cut by vocabulary.

Under tensor parallelism the output head is cut by vocabulary, and the logits stay cut: no rank ever holds those of all
tokens. So objectives, rewards and decoding read them by the functions of this file. On one worker these are torch's
own; on several the workers of the axis call them together, and all get the same results (parallel/cut_softmax.py).
B sequences, S tokens, K beams, V vocabulary, W tokens of the vocabulary on this worker.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from moe_train.data.batch import IGNORED
from moe_train.parallel import cut_softmax
from moe_train.parallel.axis import Axis


@dataclass(frozen=True)
class VocabularyPart:
    """Says which tokens of a vocabulary a worker has: equally many as its neighbours, the last of which are padding."""

    size: int
    """Tokens of the whole vocabulary."""
    axis: Axis = field(default_factory=Axis)
    """The workers that have it together."""

    @property
    def rows(self) -> int:
        """Returns the rows of the embedding and the head on every worker, padding included."""
        return -(-self.size // self.axis.size)

    @property
    def first(self) -> int:
        """Returns this worker's first token."""
        return min(self.axis.rank * self.rows, self.size)

    @property
    def count(self) -> int:
        """Returns the number of tokens on this worker, which are the first of its rows."""
        return min(self.rows, self.size - self.first)

    @property
    def is_whole(self) -> bool:
        """Returns whether this worker has all tokens."""
        return self.axis.size == 1


class Logits(NamedTuple):
    """Holds the logits of this worker's tokens. It is a tuple for the reason that `MoEStats` is one (results.py)."""

    values: Float[Tensor, "*N W"]
    part: VocabularyPart

    @classmethod
    def whole(cls, values: Float[Tensor, "*N V"]) -> "Logits":
        """Returns logits of all tokens."""
        return cls(values, VocabularyPart(values.shape[-1]))

    def at_end(self) -> "Logits":
        """Returns those at the last position of each sequence, [B, W]."""
        return self._replace(values=self.values[:, -1])


class LogProbabilities(NamedTuple):
    """Holds the log-probabilities of this worker's tokens, in fp32."""

    values: Float[Tensor, "*N W"]
    part: VocabularyPart


class Continuations(NamedTuple):
    """Holds the best ways to add a token to the beams of each sentence, best first."""

    scores: Float[Tensor, "B K"]
    beams: Int[Tensor, "B K"]
    tokens: Int[Tensor, "B K"]


def cross_entropies(logits: Logits, targets: Int[Tensor, "B S"]) -> Float[Tensor, "B S"]:
    """Returns -log p of each target in nats, in fp32; 0 where nothing is predicted. Collective."""
    values, part = logits.values.flatten(0, 1), logits.part
    flat = targets.flatten()
    if part.is_whole:
        losses = F.cross_entropy(values.float(), flat, ignore_index=IGNORED, reduction="none")
    else:
        losses = cut_softmax.cross_entropies(values, flat - part.first, flat != IGNORED, part.axis)
    return losses.view_as(targets)


def mean_cross_entropy(logits: Logits, targets: Int[Tensor, "B S"]) -> Float[Tensor, ""]:
    """Returns the mean of `cross_entropies` over these targets. Collective."""
    if logits.part.is_whole:
        values = logits.values.flatten(0, 1).float()
        return F.cross_entropy(values, targets.flatten(), ignore_index=IGNORED)
    return cross_entropies(logits, targets).sum() / (targets != IGNORED).sum()


def log_sum_exp(logits: Logits) -> Float[Tensor, "*N"]:
    """Returns the logarithm of the sum of exponentials over the vocabulary, in fp32. Collective."""
    if logits.part.is_whole:
        return logits.values.float().logsumexp(-1)
    return cut_softmax.log_sum_exp(logits.values, logits.part.axis)


def log_probabilities(logits: Logits) -> LogProbabilities:
    """Returns the logarithm of the softmax over the vocabulary. Collective, also backward."""
    values, part = logits.values.float(), logits.part
    if part.is_whole:
        return LogProbabilities(torch.log_softmax(values, dim=-1), part)
    return LogProbabilities(cut_softmax.log_softmax(values, part.axis), part)


def at_targets(log_p: LogProbabilities, targets: Int[Tensor, "B S"]) -> Float[Tensor, "B S"]:
    """Returns the log-probability of each target; any number where nothing is predicted. Collective."""
    if log_p.part.is_whole:
        return log_p.values.gather(2, targets.clamp(min=0).unsqueeze(2)).squeeze(2)
    mine = cut_softmax.at_columns(log_p.values, targets - log_p.part.first)
    return cut_softmax.sum_of_parts(mine, log_p.part.axis)


def sum_over_vocabulary(values: Float[Tensor, "*N W"], part: VocabularyPart) -> Float[Tensor, "*N"]:
    """Returns the sum over the tokens of all workers. Collective."""
    mine = values.sum(-1)
    return mine if part.is_whole else cut_softmax.sum_of_parts(mine, part.axis)


def mean_over_vocabulary(log_p: LogProbabilities) -> Float[Tensor, "*N"]:
    """Returns the mean log-probability of all tokens. Collective."""
    if log_p.part.is_whole:
        return log_p.values.mean(-1)
    return sum_over_vocabulary(log_p.values, log_p.part) / log_p.part.size


def only(log_p: LogProbabilities, token: int) -> LogProbabilities:
    """Returns the log-probabilities with every token except `token` ruled out."""
    restricted = torch.full_like(log_p.values, -torch.inf)
    mine = slice(max(token - log_p.part.first, 0), max(token + 1 - log_p.part.first, 0))
    restricted[..., mine] = log_p.values[..., mine]
    return log_p._replace(values=restricted)


def best_continuations(scores: Float[Tensor, "B K"], log_p: LogProbabilities) -> Continuations:
    """Returns the K best sums of a beam's score and the log-probability [B, K, W] of a next token. Collective."""
    count, part = scores.shape[1], log_p.part
    totals = (scores.unsqueeze(2) + log_p.values).flatten(1)
    best = totals.topk(min(count, totals.shape[1]), dim=1)
    width = max(part.count, 1)  # a worker without tokens has no candidates to divide
    found = Continuations(best.values, best.indices // width, best.indices % width + part.first)
    return found if part.is_whole else _best_of_workers(found, count, part)


def _best_of_workers(found: Continuations, count: int, part: VocabularyPart) -> Continuations:
    """Returns the `count` best of what all workers have found, of which some may have fewer."""
    missing = count - found.scores.shape[1]
    scores = F.pad(found.scores, (0, missing), value=-torch.inf)
    places = F.pad(found.beams * part.size + found.tokens, (0, missing))
    all_scores, all_places = (part.axis.gather(each).transpose(0, 1).flatten(1) for each in (scores, places))
    best = all_scores.topk(count, dim=1)
    chosen = all_places.gather(1, best.indices)
    return Continuations(best.values, chosen // part.size, chosen % part.size)
