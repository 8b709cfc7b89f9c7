"""Defines what the rest of the system needs of a model, so that nothing outside depends on its architecture.

B sequences, S tokens, R tokens of a source, D model width.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from moe_train.data.batch import Batch
from moe_train.model.logits import Logits, VocabularyPart
from moe_train.model.stack import Block, StackOutput
from moe_train.moe.routing import Pass, RouteContext
from moe_train.parallel.sequences import Sequences
from moe_train.results import MoEStats


class ModelOutput(NamedTuple):
    """Holds what a model returns. It is a tuple for the reason that `MoEStats` is one."""

    logits: Logits
    """At every place [B, S]."""
    moe: tuple[MoEStats, ...]
    """The statistics of every MoE layer, lowest first, an encoder's before those of its decoder."""


class Model(nn.Module, ABC):
    """Predicts the next token, or hidden ones. It returns a `ModelOutput`."""

    embedding: nn.Embedding
    head: nn.Linear | None
    """None: the embedding's matrix serves as head."""
    scores: "Scores"

    entry_points: ClassVar[tuple[str, ...]] = ()
    """Methods that are called in place of `forward`, which FSDP2 must hook itself into as well."""
    vocabulary: VocabularyPart
    """The tokens whose logits this rank's head computes: all of them, until tensor parallelism cuts the head."""
    sequences: Sequences
    """Says whether sequences are cut between the blocks; the same for all stacks."""

    @property
    @abstractmethod
    def blocks(self) -> list[Block]:
        """Returns all blocks, lowest first, an encoder's before those of its decoder."""

    @abstractmethod
    def inputs(self, batch: Batch, forward_pass: Pass) -> tuple[Any, ...]:
        """Returns the arguments of `forward` for a batch."""


class Scores(nn.Module):
    """Scores the vocabulary by a matrix that it is given, the head's or the embedding's.

    It is a module because tensor parallelism hooks itself into it, whichever matrix it is.
    """

    def forward(self, x: Float[Tensor, "B S D"], weight: Float[Tensor, "V D"]) -> Float[Tensor, "B S V"]:
        """Returns the scores of every place."""
        return F.linear(x, weight)


@runtime_checkable
class Translating(Protocol):
    """Encodes a source once, and then continues prefixes given the result."""

    def encode(self, source: Int[Tensor, "B R"], context: RouteContext) -> StackOutput:
        """Returns what `decode` reads of a source."""
        ...

    def decode(
        self,
        tokens: Int[Tensor, "B S"],
        context: RouteContext,
        memory: Float[Tensor, "B R D"],
        is_real: Bool[Tensor, "B R"] | None,
    ) -> ModelOutput:
        """Returns logits of the token after each of `tokens`; `is_real` is false where `memory` is of padding."""
        ...
