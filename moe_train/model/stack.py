"""A stack of transformer blocks, plain single-device PyTorch; `transformer.py` makes models of one or two of them.

B sequences, S tokens, R tokens of the encoder's output, D model width, L MoE layers.
"""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from moe_train.config.spec import ModelSpec, StackSpec
from moe_train.model.attention import Attention, RelativeBias, hide_padding
from moe_train.model.feedforward import FeedForward
from moe_train.moe.layers.layer import MoELayer, moe_layer
from moe_train.moe.routing import RouteContext
from moe_train.results import MoEStats


class Block(nn.Module):
    """Attention, in a decoder that reads an encoder a second one, and a feed-forward block (dense or MoE).

    Each stands behind a norm and beside a residual.
    """

    def __init__(self, spec: ModelSpec, stack: StackSpec, layer: int, site: str):
        super().__init__()
        self.site, self.dropout = site, spec.dropout
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
        x: Float[Tensor, "B S D"],
        bias: Float[Tensor, "#B #H #S S"] | None,
        context: RouteContext,
        memory: Float[Tensor, "B R D"] | None = None,
        memory_bias: Float[Tensor, "B 1 1 R"] | None = None,
    ) -> tuple[Float[Tensor, "B S D"], MoEStats | None]:
        """The block's output and, from an MoE layer, its statistics."""
        mixed = self.attention(self.attention_norm(x), bias)
        x = x + dropout(mixed, self.dropout, f"{self.site}.attention", context)
        if self.cross_attention is not None and self.cross_attention_norm is not None:
            read = self.cross_attention(self.cross_attention_norm(x), memory_bias, memory)
            x = x + dropout(read, self.dropout, f"{self.site}.cross_attention", context)
        normed, stats = self.feedforward_norm(x), None
        if isinstance(self.feedforward, MoELayer):
            rows, stats = self.feedforward(normed.flatten(0, 1), context, x.flatten(0, 1))
            y = rows.view_as(x)
            if self.shared_experts is not None:
                y = y + self.shared_experts(normed)
        else:
            y = self.feedforward(normed)
        return x + dropout(y, self.dropout, f"{self.site}.feedforward", context), stats


class StackOutput(NamedTuple):
    """What a stack returns."""

    states: Float[Tensor, "B S D"]
    moe: tuple[MoEStats, ...]
    """The statistics of every MoE layer, lowest first."""


class Stack(nn.Module):
    """Positions, blocks and the last norm; `prefix` tells the random draws of two stacks apart."""

    def __init__(self, spec: ModelSpec, stack: StackSpec, prefix: str = ""):
        super().__init__()
        self.site, self.dropout, self.is_causal = f"{prefix}embedding", spec.dropout, stack.is_causal
        self.positions = nn.Embedding(stack.length, spec.d_model) if spec.positions == "learned" else None
        self.relative_bias = (
            RelativeBias(spec.num_heads, is_causal=stack.is_causal) if spec.positions == "relative" else None
        )
        self.layers = nn.ModuleList(
            Block(spec, stack, layer, f"{prefix}layers.{layer}") for layer in range(stack.num_layers)
        )
        self.norm = nn.RMSNorm(spec.d_model)

    def run(
        self,
        x: Float[Tensor, "B S D"],
        context: RouteContext,
        memory: Float[Tensor, "B R D"] | None = None,
        memory_bias: Float[Tensor, "B 1 1 R"] | None = None,
    ) -> StackOutput:
        """Returns the states of embedded tokens after the last block."""
        if self.positions is not None:
            x = x + self.positions.weight[: x.shape[1]]
        x = dropout(x, self.dropout, self.site, context)
        bias = self._bias(x.shape[1], context)
        stats = []
        for layer in self.layers:
            x, of_layer = layer(x, bias, context, memory, memory_bias)
            if of_layer is not None:
                stats.append(of_layer)
        return StackOutput(self.norm(x), tuple(stats))

    def _bias(self, length: int, context: RouteContext) -> Float[Tensor, "B_or_1 H_or_1 S_or_1 S"] | None:
        """What is added to the scores of every layer: relative positions, and what hides padding.

        Padding comes after all real tokens, so causal attention never sees it.
        """
        bias = None if self.relative_bias is None else self.relative_bias(length).unsqueeze(0)
        is_real = context.rows.is_real
        if self.is_causal or is_real is None:
            return bias
        hiding = hide_padding(is_real)
        return hiding if bias is None else bias + hiding


def dropout(
    x: Float[Tensor, "B S D"], rate: float, site: str, context: RouteContext
) -> Float[Tensor, "B S D"]:
    """Inverted dropout whose mask is a function of (seed, step, site, sequence), the same on every layout."""
    if rate == 0 or not context.training:
        return x
    keep = context.uniform(site, x.shape[2]).view_as(x) >= rate
    return x * keep / (1 - rate)
