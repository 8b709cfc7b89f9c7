"""Defines the section `objective`: one dataclass per kind; see kind.py."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from moe_train.config.kinds.facts import Facts
from moe_train.config.kinds.kind import KindConfig
from moe_train.config.problem import Problem


@dataclass
class ObjectiveConfig(KindConfig):
    """Is the base of all objectives."""

    architectures: ClassVar[tuple[str, ...]] = ("decoder",)
    """The values of `model.architecture` that it can train."""

    @property
    def num_extra_tokens(self) -> int:
        """Returns the number of vocabulary entries that it adds after those of the tokenizer."""
        return 0

    def lengths(self, sequence_length: int) -> tuple[int, int]:
        """Returns how many tokens an encoder and a decoder read of a window of `data.sequence_length` tokens."""
        return sequence_length, sequence_length

    @property
    def num_passes(self) -> int:
        """Returns the number of forward passes over every batch of an update."""
        return 1

    def reads_pairs(self, recipe: Facts) -> bool:
        """Returns whether it is trained on the sentence pairs of a parallel corpus."""
        return False


@dataclass
class LanguageConfig(ObjectiveConfig):
    """Minimises the next-token cross-entropy, a mean over tokens in nats."""

    kind: str = "language"


@dataclass
class ConsistencyConfig(ObjectiveConfig):
    """Minimises the cross-entropy of two passes that must agree (THOR, 2110.04260; with one expert R-Drop)."""

    kind: str = "consistency"
    alpha: float = 5.0  # factor of the symmetric divergence of the passes' predictions
    label_smoothing: float = 0.1  # share of the target spread over the vocabulary, in training

    architectures: ClassVar[tuple[str, ...]] = ("decoder", "encoder_decoder")

    @property
    def num_passes(self) -> int:
        return 2

    def reads_pairs(self, recipe: Facts) -> bool:
        return recipe.model.architecture == "encoder_decoder"

    def check(self, recipe: Facts) -> Iterator[Problem]:
        if self.alpha < 0:
            yield Problem("objective.alpha", self.alpha, "must be at least 0", "THOR uses 5")
        yield from _smoothing(self.label_smoothing)
        yield from self._check_passes(recipe)

    def _check_passes(self, recipe: Facts) -> Iterator[Problem]:
        moe, dropout = recipe.moe, recipe.model.dropout
        numbers = moe.num_experts if isinstance(moe.num_experts, list) else [moe.num_experts]
        draws = any(map(moe.router.draws_in_training, numbers)) or moe.expert_dropout > 0
        has_experts = moe.every != 0
        if dropout > 0 or (has_experts and draws):
            return
        layers = (
            f"moe.expert_dropout=0 and moe.router.kind={moe.router.kind} with moe.num_experts={moe.num_experts}"
            if has_experts
            else "moe.every=0"
        )
        yield Problem(
            "objective.kind",
            self.kind,
            f"needs two passes over each batch that differ, but with model.dropout=0, {layers} nothing is random",
            "set model.dropout=0.1, or moe.router.kind=thor with several experts, or choose another objective.kind",
        )


@dataclass
class TranslationConfig(ObjectiveConfig):
    """Minimises the label-smoothed cross-entropy of target sentences, a mean over their tokens in nats."""

    kind: str = "translation"
    label_smoothing: float = 0.1  # share of the target spread over the vocabulary, in training

    architectures: ClassVar[tuple[str, ...]] = ("encoder_decoder",)

    def reads_pairs(self, recipe: Facts) -> bool:
        return True

    def check(self, recipe: Facts) -> Iterator[Problem]:
        yield from _smoothing(self.label_smoothing)


def _smoothing(share: float) -> Iterator[Problem]:
    if not 0 <= share < 1:
        yield Problem("objective.label_smoothing", share, "must be in [0, 1)", "use 0.1, or 0 for none")


@dataclass
class MaskedConfig(ObjectiveConfig):
    """Hides some tokens and predicts them from all others (BERT, 1810.04805, sec. 3.1): for encoders."""

    kind: str = "masked"
    rate: float = 0.15  # share of the tokens to predict
    masked_share: float = 0.8  # of those: replaced by the mask token
    random_share: float = 0.1  # of those: replaced by any token; the rest stay as they are

    architectures: ClassVar[tuple[str, ...]] = ("encoder",)

    @property
    def num_extra_tokens(self) -> int:
        return 1

    def num_predicted(self, sequence_length: int) -> int:
        """Returns the number of tokens to predict in every sequence: at least one."""
        return min(max(round(self.rate * sequence_length), 1), sequence_length)

    def check(self, recipe: Facts) -> Iterator[Problem]:
        if not 0 < self.rate < 1:
            yield Problem("objective.rate", self.rate, "must be between 0 and 1", "BERT uses 0.15")
        for key, share in (("masked_share", self.masked_share), ("random_share", self.random_share)):
            if not 0 <= share <= 1:
                yield Problem(f"objective.{key}", share, "must be in [0, 1]", "BERT uses 0.8 and 0.1")
        if self.masked_share + self.random_share > 1:
            yield Problem(
                "objective.random_share",
                self.random_share,
                f"must be at most 1 together with objective.masked_share={self.masked_share}",
                "BERT uses 0.8 and 0.1, and leaves the rest as they are",
            )


@dataclass
class SpanCorruptionConfig(ObjectiveConfig):
    """Cuts spans out of the encoder's text for the decoder to write (T5, 1910.10683, sec. 3.1.4)."""

    kind: str = "span_corruption"
    rate: float = 0.15  # share of the tokens that is cut out
    mean_span: float = 3.0  # tokens of a span, on average
    sentinels: int = 100  # tokens of the vocabulary that stand for spans: the maximum per sequence

    architectures: ClassVar[tuple[str, ...]] = ("encoder_decoder",)

    @property
    def num_extra_tokens(self) -> int:
        return self.sentinels

    def num_cut(self, sequence_length: int) -> int:
        """Returns the number of tokens cut out of every sequence: at least one, and at least one stays."""
        return max(min(round(self.rate * sequence_length), sequence_length - 1), 1)

    def num_spans(self, sequence_length: int) -> int:
        """Returns the number of spans cut out of every sequence: at least one."""
        return max(round(self.num_cut(sequence_length) / max(self.mean_span, 1)), 1)

    def lengths(self, sequence_length: int) -> tuple[int, int]:
        cut, spans = self.num_cut(sequence_length), self.num_spans(sequence_length)
        return sequence_length - cut + spans + 1, cut + spans + 1

    def check(self, recipe: Facts) -> Iterator[Problem]:
        length = recipe.data.sequence_length
        if not 0 < self.rate < 1:
            yield Problem("objective.rate", self.rate, "must be between 0 and 1", "T5 uses 0.15")
            return
        if self.mean_span < 1:
            yield Problem("objective.mean_span", self.mean_span, "must be at least 1", "T5 uses 3")
            return
        spans = self.num_spans(length)
        if spans > self.sentinels:
            yield Problem(
                "objective.sentinels",
                self.sentinels,
                f"must be at least the {spans} spans of a sequence of data.sequence_length={length}",
                f"set objective.sentinels={spans} or more, or use longer spans",
            )
        if spans > length - self.num_cut(length):
            yield Problem(
                "objective.rate",
                self.rate,
                f"leaves {length - self.num_cut(length)} tokens for {spans} spans, each of which needs one before it",
                "cut out less, or use longer spans and sequences",
            )
