"""Defines the models in plain single-device PyTorch: parallelism is applied from outside (distribute/).

A decoder or an encoder is one stack between an embedding and an output head; an encoder-decoder is two stacks, of which
the second reads the output of the first (Vaswani et al., 1706.03762, sec. 3). One embedding serves both, and the head
if the recipe ties it.
B sequences, S tokens, R tokens of the source, D model width.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from moe_train.config.spec import ModelSpec
from moe_train.data.batch import Batch
from moe_train.model.attention import hide_padding
from moe_train.model.logits import Logits, VocabularyPart
from moe_train.model.model import Model, ModelOutput, Scores
from moe_train.model.stack import Block, Stack, StackOutput
from moe_train.moe.routing import Pass, RouteContext
from moe_train.moe.rows import Rows
from moe_train.parallel.sequences import Sequences


class Transformer(Stack, Model):
    """Implements a decoder (causal) or an encoder: embedding, one stack, output head."""

    def __init__(self, spec: ModelSpec):
        (stack,) = spec.stacks
        super().__init__(spec, stack)
        self.vocabulary = VocabularyPart(spec.vocabulary_size)
        self.embedding = _embedding(spec)
        self.head = _head(spec)
        self.scores = Scores()

    @property
    def blocks(self) -> list[Block]:
        """Returns all blocks, lowest first."""
        return list(self.layers)  # type: ignore[arg-type]

    def inputs(self, batch: Batch, forward_pass: Pass) -> tuple[Any, ...]:
        """Returns the tokens of the batch."""
        rows = Rows(batch.sequence_ids, batch.tokens, batch.is_real)
        return batch.tokens, RouteContext(forward_pass, rows)

    def forward(self, tokens: Int[Tensor, "B S"], context: RouteContext | None = None) -> ModelOutput:
        """Returns logits at every position."""
        context = context or RouteContext.outside_of_a_run(tokens, self.training)
        x, stats = self.run(self.embedding(tokens), context)
        return ModelOutput(_logits(self, x), stats)


class EncoderDecoder(Model):
    """Implements an encoder, and a causal decoder whose blocks also attend to its output."""

    entry_points = ("encode", "decode")

    def __init__(self, spec: ModelSpec):
        super().__init__()
        encoder, decoder = spec.stacks
        self.vocabulary = VocabularyPart(spec.vocabulary_size)
        self.embedding = _embedding(spec)
        self.encoder = Stack(spec, encoder, "encoder.")
        self.decoder = Stack(spec, decoder, "decoder.")
        self.sequences = self.encoder.sequences = self.decoder.sequences = Sequences()
        self.head = _head(spec)
        self.scores = Scores()

    @property
    def blocks(self) -> list[Block]:
        """Returns all blocks, the encoder's first."""
        return [*self.encoder.layers, *self.decoder.layers]

    def inputs(self, batch: Batch, forward_pass: Pass) -> tuple[Any, ...]:
        """Returns the decoder's tokens, and the source."""
        assert batch.source is not None, "config.check lets only objectives with a source train these"
        rows = Rows(batch.sequence_ids, batch.tokens, batch.is_real)
        source = Rows(batch.sequence_ids, batch.source, batch.source_is_real)
        context, source_context = (RouteContext(forward_pass, each) for each in (rows, source))
        return batch.tokens, context, batch.source, source_context

    def forward(
        self,
        tokens: Int[Tensor, "B S"],
        context: RouteContext,
        source: Int[Tensor, "B R"],
        source_context: RouteContext,
    ) -> ModelOutput:
        """Returns logits of the token after each of `tokens`, given `source`."""
        memory, encoder_stats = self._encoded(source, source_context)
        output = self._decoded(tokens, context, memory, source_context.rows.is_real)
        return output._replace(moe=(*encoder_stats, *output.moe))

    def encode(self, source: Int[Tensor, "B R"], context: RouteContext) -> StackOutput:
        """Returns what the decoder reads: for generating text."""
        # FSDP2 hooks itself into this method and `decode`, so `forward`, which has its own hooks, calls neither.
        return self._encoded(source, context)

    def decode(
        self,
        tokens: Int[Tensor, "B S"],
        context: RouteContext,
        memory: Float[Tensor, "B R D"],
        is_real: Bool[Tensor, "B R"] | None,
    ) -> ModelOutput:
        """Returns logits of the token after each of `tokens`; `is_real` is false where `memory` is of padding."""
        return self._decoded(tokens, context, memory, is_real)

    def _encoded(self, source: Int[Tensor, "B R"], context: RouteContext) -> StackOutput:
        return self.encoder.run(self.embedding(source), context)

    def _decoded(
        self,
        tokens: Int[Tensor, "B S"],
        context: RouteContext,
        memory: Float[Tensor, "B R_of_rank D"],
        is_real: Bool[Tensor, "B R"] | None,
    ) -> ModelOutput:
        hiding = None if is_real is None else hide_padding(is_real)
        x, stats = self.decoder.run(self.embedding(tokens), context, memory, hiding)
        return ModelOutput(_logits(self, x), stats)


def build_on_meta(spec: ModelSpec) -> Model:
    """Returns the model without storage, to be sharded before any rank holds a weight."""
    with torch.device("meta"):
        return Transformer(spec) if len(spec.stacks) == 1 else EncoderDecoder(spec)


def _embedding(spec: ModelSpec) -> nn.Embedding:
    return nn.Embedding(spec.vocabulary_size, spec.d_model)


def _head(spec: ModelSpec) -> nn.Linear | None:
    return None if spec.tied_embeddings else nn.Linear(spec.d_model, spec.vocabulary_size, bias=False)


def _logits(model: Model, x: Float[Tensor, "B S D"]) -> Logits:
    matrix = model.embedding.weight if model.head is None else model.head.weight
    return Logits(model.scores(x, matrix), model.vocabulary)
