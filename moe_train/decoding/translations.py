"""Translates a set of pairs to text and scores the translations, on all ranks together."""

from collections.abc import Sequence
from dataclasses import dataclass

from moe_train.data.batch import IGNORED, Batch
from moe_train.data.tokenizer import EOS_ID, Tokenizer
from moe_train.decoding.scores import scores
from moe_train.decoding.translator import Translator


@dataclass(frozen=True)
class Translation:
    """Holds one sentence, its translation and the reference."""

    source: str
    hypothesis: str
    reference: str


@dataclass(frozen=True)
class TranslationTest:
    """Translates and scores a set of pairs, of which this rank has its share."""

    batches: Sequence[Batch]
    tokenizer: Tokenizer
    translator: Translator

    def translations(self, step: int) -> list[Translation]:
        """Returns all pairs of all ranks in the order of their numbers, on every rank. Collective."""
        numbered: list[tuple[int, Translation]] = []
        for batch in self.batches:
            assert batch.source is not None
            hypotheses = self.translator.translate(batch, step)
            columns = (batch.sequence_ids, batch.source, hypotheses, batch.targets)
            for number, *sides in zip(*(column.tolist() for column in columns), strict=True):
                numbered.append((number, Translation(*map(self._text, sides))))
        by_number = {
            number: pair for share in self.translator.world.gather(numbered) for number, pair in share
        }
        return [by_number[number] for number in sorted(by_number)]

    def scores(self, step: int) -> dict[str, float]:
        """Returns `bleu` and `chrf` over all pairs. Collective."""
        pairs = self.translations(step)
        return scores([pair.hypothesis for pair in pairs], [pair.reference for pair in pairs])

    def _text(self, tokens: list[int]) -> str:
        """Returns the text up to the first `<eos>`."""
        end = tokens.index(EOS_ID) if EOS_ID in tokens else len(tokens)
        return self.tokenizer.decode([token for token in tokens[:end] if token != IGNORED])
