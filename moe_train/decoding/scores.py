"""Scores translations with the field's standard tool, `sacrebleu`: BLEU and chrF, both from 0 to 100.

Papineni et al. 2002 and Post, 1804.08771: corpus BLEU up to 4-grams with the tokenizer `13a`, exponential smoothing;
Popovic 2015: chrF with character 6-grams and beta 2. Both are scores of a whole corpus, not means over sentences.
"""

from collections.abc import Sequence


def scores(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Returns `bleu` and `chrf` of translations, each with one reference, in the same order."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    one_each = [list(references)]
    return {
        "bleu": BLEU().corpus_score(list(hypotheses), one_each).score,
        "chrf": CHRF().corpus_score(list(hypotheses), one_each).score,
    }
