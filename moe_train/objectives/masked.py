"""Implements masked language modelling: an encoder predicts tokens that were hidden from it.

Devlin et al., 1810.04805, sec. 3.1: 15% of the tokens are predicted; of these 80% are replaced by the mask token, 10%
by a random token, and 10% stay as they are. As in the authors' data preparation, every sequence has the same number of
them; unlike there, a sequence is masked anew each time it is read (RoBERTa, 1907.11692, sec. 4.1), and the end of a
document is a token like any other. The mask token comes after those of the tokenizer.
B sequences, S tokens.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from moe_train.config.kinds.objective import MaskedConfig
from moe_train.data.batch import IGNORED, Batch
from moe_train.objectives.language import LanguageObjective
from moe_train.random import RandomStream

SITE = "objective.masked"


class MaskedObjective(LanguageObjective):
    """Predicts hidden tokens; the loss is the cross-entropy in nats, a mean over the tokens to predict."""

    def __init__(self, config: MaskedConfig):
        super().__init__(config)
        self.config = config

    def batch(
        self, windows: Int[Tensor, "B S_plus_1"], sequence_ids: Int[Tensor, " B"], vocabulary: int, seed: int
    ) -> Batch:
        """Hides some tokens of every window except its last token; the choice is a function of (seed, sequence)."""
        config, tokens = self.config, windows[:, :-1]
        stream, length = RandomStream(seed, 0), tokens.shape[1]
        place, fate, other = (
            stream.uniform(f"{SITE}.{draw}", sequence_ids, length)
            for draw in ("place", "fate", "replacement")
        )
        first = place.argsort(dim=1, stable=True)[:, : config.num_predicted(length)]
        is_target = torch.zeros_like(tokens, dtype=torch.bool).scatter_(1, first, True)
        is_hidden, is_replaced = fate < config.masked_share, fate < config.masked_share + config.random_share
        visible = torch.where(is_target & is_replaced, (other * vocabulary).long(), tokens)
        visible = visible.masked_fill(is_target & is_hidden, vocabulary)
        return Batch(visible, tokens.masked_fill(~is_target, IGNORED), sequence_ids)
