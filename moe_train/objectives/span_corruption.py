"""Implements span corruption: spans are cut out of a text, and the decoder predicts them.

Raffel et al., 1910.10683, sec. 3.1.4 and 3.3.4, and `random_spans_noise_mask` of its code: 15% of the tokens in spans
of 3 on average. Both the tokens cut out and the tokens that stay are divided into the same number of parts of random
lengths, at least 1, which alternate; so a text begins with tokens that stay and ends with a span, every sequence has
the same number of spans, and nothing is padded. The encoder reads a sentinel in place of each span, then `<eos>`; the
decoder reads `<pad>` first and writes, for each span, its sentinel and its tokens, then `<eos>`. Sentinel i is the i-th
token after those of the tokenizer (T5 counts them from the top of its vocabulary).
B sequences, S tokens, R tokens of the source, N = S tokens of the text.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moe_train.config.kinds.objective import SpanCorruptionConfig
from moe_train.data.batch import Batch
from moe_train.data.tokenizer import EOS_ID, PAD_ID
from moe_train.objectives.language import LanguageObjective
from moe_train.random import RandomStream

SITE = "objective.span_corruption"


class SpanCorruptionObjective(LanguageObjective):
    """Predicts spans; the loss is the cross-entropy in nats, a mean over spans' tokens, sentinels and `<eos>`."""

    def __init__(self, config: SpanCorruptionConfig):
        super().__init__(config)
        self.config = config

    def batch(
        self, windows: Int[Tensor, "B N_plus_1"], sequence_ids: Int[Tensor, " B"], vocabulary: int, seed: int
    ) -> Batch:
        """Cuts spans out of every window except its last token; the choice is a function of (seed, sequence)."""
        text = windows[:, :-1]
        length = text.shape[1]
        cut, spans = self.config.num_cut(length), self.config.num_spans(length)
        stream = RandomStream(seed, 0)
        is_cut = span_mask(
            parts(stream.uniform(f"{SITE}.kept", sequence_ids, length - cut - 1), spans),
            parts(stream.uniform(f"{SITE}.cut", sequence_ids, cut - 1), spans),
        )
        targets = with_sentinels(text, ~is_cut, vocabulary)
        start = targets.new_full((len(targets), 1), PAD_ID)
        return Batch(
            tokens=torch.cat((start, targets[:, :-1]), dim=1),
            targets=targets,
            sequence_ids=sequence_ids,
            source=with_sentinels(text, is_cut, vocabulary),
        )


def parts(draws: Float[Tensor, "B M_minus_1"], count: int) -> Int[Tensor, "B count"]:
    """Divides M tokens into `count` parts of length at least 1, cutting after the tokens with the smallest draws."""
    cuts = draws.argsort(dim=1, stable=True)[:, : count - 1].sort(dim=1).values + 1
    first = cuts.new_zeros(len(cuts), 1)
    return torch.cat((first, cuts, first + draws.shape[1] + 1), dim=1).diff(dim=1)


def span_mask(stay: Int[Tensor, "B K"], cut: Int[Tensor, "B K"]) -> Bool[Tensor, "B N"]:
    """Returns True for tokens of spans: `stay[0]` tokens stay, `cut[0]` are a span, `stay[1]` stay, ..."""
    lengths = torch.stack((stay, cut), dim=2).flatten(1)
    is_cut = torch.arange(lengths.shape[1]).remainder(2).bool().expand_as(lengths)
    return is_cut.flatten().repeat_interleave(lengths.flatten()).view(len(lengths), -1)


def with_sentinels(
    text: Int[Tensor, "B N"], hidden: Bool[Tensor, "B N"], first_sentinel: int
) -> Int[Tensor, "B M"]:
    """Returns the text with each run of hidden tokens replaced by one sentinel, and `<eos>` at the end.

    All rows must have the same number of hidden tokens, in the same number of runs.
    """
    begins = hidden.clone()
    begins[:, 1:] &= ~hidden[:, :-1]
    visible = torch.where(begins, begins.cumsum(1) - 1 + first_sentinel, text)[~hidden | begins]
    end = text.new_full((len(text), 1), EOS_ID)
    return torch.cat((visible.view(len(text), -1), end), dim=1)
