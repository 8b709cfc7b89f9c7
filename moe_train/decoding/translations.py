"""Translations of a set of pairs, as text, and how good they are: on all ranks together."""

from collections.abc import Sequence
from dataclasses import dataclass

from moe_train.data.batch import IGNORED, Batch
from moe_train.data.tokenizer import EOS_ID, Tokenizer
from moe_train.decoding.scores import scores
from moe_train.decoding.translator import Translator
from moe_train.parallel.world import World


@dataclass(frozen=True)
class Translated:
    """One sentence."""

    source: str
    hypothesis: str
    reference: str


@dataclass(frozen=True)
class TranslationTest:
    """This rank's share of the pairs that are translated."""

    batches: Sequence[Batch]
    tokenizer: Tokenizer
    world: World

    def translations(self, translator: Translator, step: int) -> list[Translated]:
        """All pairs of all ranks in the order of their numbers, on every rank. Collective."""
        found: list[tuple[int, Translated]] = []
        for batch in self.batches:
            assert batch.source is not None
            hypotheses = translator.translate(batch, step)
            columns = (batch.sequence_ids, batch.source, hypotheses, batch.targets)
            for number, *sides in zip(*(column.tolist() for column in columns), strict=True):
                found.append((number, Translated(*map(self._text, sides))))
        everywhere = {number: pair for of_rank in self.world.gather(found) for number, pair in of_rank}
        return [everywhere[number] for number in sorted(everywhere)]

    def scores(self, translator: Translator, step: int) -> dict[str, float]:
        """`bleu` and `chrf` over all of them. Collective."""
        pairs = self.translations(translator, step)
        return scores([pair.hypothesis for pair in pairs], [pair.reference for pair in pairs])

    def _text(self, tokens: list[int]) -> str:
        """The text up to the first `<eos>`."""
        end = tokens.index(EOS_ID) if EOS_ID in tokens else len(tokens)
        return self.tokenizer.decode([token for token in tokens[:end] if token != IGNORED])
