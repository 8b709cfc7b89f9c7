"""Translates batches with an encoder-decoder that may be distributed over ranks."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from moe_train.config.schema import DecodingConfig
from moe_train.data.batch import Batch
from moe_train.decoding.generate import generate
from moe_train.model.forward import Forward
from moe_train.model.model import Translating
from moe_train.parallel.gathered import free_gathered
from moe_train.parallel.world import World


@dataclass(frozen=True)
class Translator:
    """Runs beam search as the recipe's `decoding` says."""

    forward: Forward
    world: World
    decoding: DecodingConfig
    length: int
    """Most tokens of a translation."""

    @torch.no_grad()
    def translate(self, batch: Batch, step: int) -> Int[Tensor, "B N"]:
        """Returns a translation of every source after `step` updates; `<eos>` ends it and fills the rest.

        Collective.
        """
        model = self.forward.model
        assert isinstance(model, Translating), "config.check accepts pairs only for such models"
        model.eval()
        with self.forward.precision(batch), self.forward.model.sequences.whole():
            tokens = generate(
                model,
                batch,
                self.forward.forward_pass(step),
                self.decoding,
                self.length,
                self._all_agree,
            )
        free_gathered(model)
        return tokens

    def _all_agree(self, answer: bool) -> bool:
        """Returns whether all ranks say yes. Collective."""
        noes = torch.tensor(float(not answer), device=self.world.device)
        return float(self.world.everyone.sum(noes)) == 0
