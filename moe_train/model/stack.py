"""Implements a stack of transformer blocks in plain single-device PyTorch; `transformer.py` makes models of them.

B sequences, S tokens, T rows (B * S unless `model.depth` leaves some out), R tokens of the encoder's output,
D model width.
"""

from dataclasses import replace
from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor, nn

from moe_train.config.registry import build
from moe_train.config.spec import ModelSpec, StackSpec
from moe_train.model.attention import Attention, RelativeBias, hide_later, hide_padding
from moe_train.model.depth import Depth, Part
from moe_train.model.feedforward import FeedForward
from moe_train.moe.dispatch.through import Beside
from moe_train.moe.layers.layer import MoELayer, moe_layer
from moe_train.moe.recompute import Run, kept
from moe_train.moe.routing import RouteContext
from moe_train.moe.rows import Rows
from moe_train.parallel.sequences import Sequences
from moe_train.results import MoEStats


class Residual(nn.Module):
    """Adds what a part of a block has computed to the stream. A module, so that it can be compiled by itself."""

    def __init__(self, rate: float):
        super().__init__()
        self.dropout = rate

    def forward(
        self, x: Float[Tensor, "T D"], y: Float[Tensor, "T D"], keep: Bool[Tensor, "T D"] | None
    ) -> Float[Tensor, "T D"]:
        """Returns the sum, with inverted dropout on `y`; `keep` is None without dropout."""
        return x + _dropped(y, keep, self.dropout)


class Block(nn.Module):
    """Applies attention, in a decoder that reads an encoder a second one, and a feed-forward block (dense or MoE).

    Each stands behind a norm and beside a residual.
    """

    def __init__(self, spec: ModelSpec, stack: StackSpec, layer: int, site: str):
        super().__init__()
        self.site, self.dropout = site, spec.dropout
        self.run: Run = kept
        self.run_attention: Run = kept
        self.residual = Residual(spec.dropout)
        self.attention_norm = nn.RMSNorm(spec.d_model)
        self.attention = Attention(spec, is_causal=stack.is_causal)
        self.cross_attention_norm = nn.RMSNorm(spec.d_model) if stack.reads_encoder else None
        self.cross_attention = (
            Attention(spec, is_causal=False, reads_memory=True) if stack.reads_encoder else None
        )
        self.feedforward_norm = nn.RMSNorm(spec.d_model)
        self.feedforward: FeedForward | MoELayer
        self.shared_experts: FeedForward | None = None
        if moe := stack.layers[layer]:
            self.feedforward = moe_layer(moe, site=self.site)
            if moe.shared_experts:
                # A sum of experts that all tokens meet is one wider expert.
                self.shared_experts = FeedForward(spec.d_model, moe.shared_width, moe.activation)
        else:
            self.feedforward = FeedForward(spec.d_model, spec.d_ff, spec.activation)

    def forward(
        self,
        x: Float[Tensor, "T D"],
        bias: Float[Tensor, "#B #H #S S"] | None,
        context: RouteContext,
        memory: Float[Tensor, "B R_of_rank D"] | None = None,
        memory_bias: Float[Tensor, "B 1 1 R"] | None = None,
    ) -> tuple[Float[Tensor, "T D"], MoEStats | None]:
        """Returns the states of the rows and, from an MoE layer, its statistics.

        Attention lays the rows out at their places; `bias` must hide places without a row.
        """
        return self.run(self._whole, x, bias, context, memory, memory_bias)

    def _whole(
        self,
        x: Float[Tensor, "T D"],
        bias: Float[Tensor, "#B #H #S S"] | None,
        context: RouteContext,
        memory: Float[Tensor, "B R_of_rank D"] | None,
        memory_bias: Float[Tensor, "B 1 1 R"] | None,
    ) -> tuple[Float[Tensor, "T D"], MoEStats | None]:
        x = self.run_attention(self._attend, x, bias, context, memory, memory_bias)
        normed, stats = self.feedforward_norm(x), None
        if isinstance(self.feedforward, MoELayer):
            # A view: gradients of router and experts are summed in it before those of the shared experts are added.
            beside = None if self.shared_experts is None else Beside(self.shared_experts, normed)
            y, stats = self.feedforward(normed.view_as(normed), context, x, beside)
        else:
            y = self.feedforward(normed)
        return self._add(x, y, "feedforward", context), stats

    def _attend(
        self,
        x: Float[Tensor, "T D"],
        bias: Float[Tensor, "#B #H #S S"] | None,
        context: RouteContext,
        memory: Float[Tensor, "B R_of_rank D"] | None,
        memory_bias: Float[Tensor, "B 1 1 R"] | None,
    ) -> Float[Tensor, "T D"]:
        """Adds what the rows read of their sequence, and of the encoder's output."""
        rows = context.rows
        mixed = rows.take(self.attention(rows.lay_out(self.attention_norm(x)), bias))
        x = self._add(x, mixed, "attention", context)
        if self.cross_attention is not None and self.cross_attention_norm is not None:
            queries = rows.lay_out(self.cross_attention_norm(x))
            read = rows.take(self.cross_attention(queries, memory_bias, memory))
            x = self._add(x, read, "cross_attention", context)
        return x

    def _add(
        self, x: Float[Tensor, "T D"], y: Float[Tensor, "T D"], part: str, context: RouteContext
    ) -> Float[Tensor, "T D"]:
        """Adds a part's output to the stream; its dropout is drawn here, outside of what may be compiled."""
        added: Tensor = self.residual(x, y, _kept(self.dropout, f"{self.site}.{part}", x.shape[1], context))
        return added


class StackOutput(NamedTuple):
    """Holds what a stack returns."""

    states: Float[Tensor, "B S D"]
    moe: tuple[MoEStats, ...]
    """The statistics of every MoE layer, lowest first."""


class Stack(nn.Module):
    """Applies positions, blocks and the last norm; `prefix` distinguishes the random draws of two stacks."""

    def __init__(self, spec: ModelSpec, stack: StackSpec, prefix: str = ""):
        super().__init__()
        self.site, self.dropout, self.is_causal = f"{prefix}embedding", spec.dropout, stack.is_causal
        self.sequences = Sequences()
        """Says which workers have different positions of every sequence between the blocks."""
        self.positions = nn.Embedding(stack.length, spec.d_model) if spec.positions == "learned" else None
        self.relative_bias = (
            RelativeBias(spec.num_heads, is_causal=stack.is_causal) if spec.positions == "relative" else None
        )
        self.layers = nn.ModuleList(
            Block(spec, stack, layer, f"{prefix}layers.{layer}") for layer in range(stack.num_layers)
        )
        self.norm = nn.RMSNorm(spec.d_model)
        self.depth: Depth = build("model.depth", spec.depth, spec=spec, stack=stack, site=f"{prefix}depth")

    def run(
        self,
        x: Float[Tensor, "B S D"],
        context: RouteContext,
        memory: Float[Tensor, "B R_of_rank D"] | None = None,
        memory_bias: Float[Tensor, "B 1 1 R"] | None = None,
    ) -> StackOutput:
        """Returns the states of embedded tokens after the last block.

        With sequence parallelism, `x`, `memory` and the states are this worker's part of every sequence.
        """
        rows = context.rows.part(self.sequences.workers)
        context = replace(context, rows=rows)
        if self.positions is not None:
            x = x + self.positions.weight[rows.first : rows.first + x.shape[1]]
        x = dropout(rows.take(x), self.dropout, self.site, context)
        bias, stats = self._bias(rows), []
        parts: list[tuple[Part, RouteContext, Tensor | None]] = []  # and what was there before each
        for index, block in enumerate(self.layers):
            if (part := self.depth.before(index, x, context)) is not None:
                parts.append((part, context, bias))
                x, context, bias = part.x, replace(context, rows=part.rows), self._bias(part.rows)
            x, layer_stats = block(x, bias, context, memory, memory_bias)
            if layer_stats is not None:
                stats.append(layer_stats)
            while parts and parts[-1][0].last == index:
                part, context, bias = parts.pop()
                x = part.put_back(x)
        assert not parts, "a part ends inside of the part and of the stack that it is a part of"
        return StackOutput(rows.lay_out(self.norm(x)), tuple(stats))

    def _bias(self, rows: Rows) -> Float[Tensor, "B_or_1 H_or_1 S_or_1 S"] | None:
        """Returns what is added to the scores: relative positions, and what hides padding and places without a row.

        Padding comes after all real tokens, so causal attention never sees it.
        """
        rows = rows.of_whole_sequences
        bias = None if self.relative_bias is None else self.relative_bias(rows.length).unsqueeze(0)
        occupied = rows.occupied
        if occupied is None or (self.is_causal and rows.is_full):
            return bias
        if self.is_causal and bias is None:
            bias = hide_later(rows.length, rows.values.device)
        hiding = hide_padding(occupied)
        return hiding if bias is None else bias + hiding


def dropout(x: Float[Tensor, "T D"], rate: float, site: str, context: RouteContext) -> Float[Tensor, "T D"]:
    """Applies inverted dropout; its mask depends only on (seed, step, site, sequence, position), on any layout."""
    return _dropped(x, _kept(rate, site, x.shape[1], context), rate)


def _kept(rate: float, site: str, width: int, context: RouteContext) -> Bool[Tensor, "T D"] | None:
    """Draws which elements of rows of `width` dropout keeps; None: all of them."""
    if rate == 0 or not context.training:
        return None
    return context.uniform(site, width) >= rate


def _dropped(x: Float[Tensor, "T D"], keep: Bool[Tensor, "T D"] | None, rate: float) -> Float[Tensor, "T D"]:
    return x if keep is None else x * keep / (1 - rate)
