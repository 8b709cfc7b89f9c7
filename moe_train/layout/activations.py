"""Estimates the bytes that a rank keeps of a forward pass for its backward pass, over one microbatch.

What each part keeps was read from the tensors that autograd saves on a CPU, and the tests compare the sum with live
tensors; small tables of positions are left out. Attention is a fused kernel, which keeps no scores, but with relative
or transformer_xl positions, whose scores have gradients. `moe-train plan` counts, whatever the model.
Unless a line says otherwise, amounts are per token.
"""

from dataclasses import dataclass, replace
from typing import Literal

from moe_train.config.plan import ParallelPlan
from moe_train.config.spec import GATED, ModelSpec, MoESpec, StackSpec
from moe_train.layout.rows import expected_rows

Recompute = Literal["none", "experts", "attention", "block"]
INDEX = 8
"""Bytes of an index."""
INDICES_OF_EDGE = 6
"""Indices that the exchange keeps of each edge."""


@dataclass(frozen=True)
class Kept:
    """Describes what decides how much a rank keeps of a token."""

    is_bf16: bool
    """Matrix products are in bf16."""
    recompute: Recompute = "none"
    casts_weights: bool = True
    """bf16 copies of a block's weights are made where they are read; they are none if weights are gathered in bf16."""

    @property
    def size(self) -> int:
        """Returns the bytes of a number."""
        return 2 if self.is_bf16 else 4

    @property
    def attention_again(self) -> bool:
        """Returns whether attention runs again in the backward pass."""
        return self.recompute in ("attention", "block")

    @property
    def experts_again(self) -> bool:
        """Returns whether experts, shared ones too, run again in the backward pass."""
        return self.recompute in ("experts", "block")

    def inputs(self, width: int, products: int) -> int:
        """Returns what `products` matrix products keep of their input: in bf16, each a copy of its own."""
        return 2 * width * products if self.is_bf16 else 4 * width


def saved_bytes(spec: ModelSpec, plan: ParallelPlan, sequences: int, kept: Kept, num_passes: int = 1) -> int:
    """Returns the bytes kept of `sequences` sequences, the logits and what the loss keeps of them included."""
    spec = _of_rank(spec, plan)
    tokens, source = 0.0, spec.stacks[0].length
    for stack in spec.stacks:
        per_token: float = _norm(spec, plan) + _dropout(spec, plan)
        per_token += sum(_block(spec, stack, moe, plan, kept) for moe in stack.layers)
        tokens += stack.length * per_token
        if stack.reads_encoder:
            tokens += source * _memory(spec, stack, plan, kept)
    last = spec.stacks[-1].length
    # Of logits that are cut, none is copied to fp32.
    size = kept.size + (4 if plan.tensor == 1 else 0)
    head = kept.inputs(spec.d_model, 1) + size * spec.vocabulary_size
    return round(sequences * num_passes * (tokens + last * head)) + _copied_weights(spec, plan, kept)


def _of_rank(spec: ModelSpec, plan: ParallelPlan) -> ModelSpec:
    """Returns the model with the heads, widths and vocabulary that a tensor rank has, and with slices for experts."""

    def cut(layer: MoESpec | None) -> MoESpec | None:
        return layer and replace(layer, d_ff=layer.d_ff // plan.expert_tensor)

    return replace(
        spec,
        stacks=tuple(replace(stack, layers=tuple(map(cut, stack.layers))) for stack in spec.stacks),
        num_heads=spec.num_heads // plan.tensor,
        d_ff=spec.d_ff // plan.tensor,
        vocabulary_size=-(-spec.vocabulary_size // plan.tensor),
    )


def _block(spec: ModelSpec, stack: StackSpec, moe: MoESpec | None, plan: ParallelPlan, kept: Kept) -> float:
    if kept.recompute == "block":
        return _stream(spec, plan) + (0 if moe is None else _decision(moe))
    attention: float = _stream(spec, plan)
    if not kept.attention_again:
        attention = _norm(spec, plan) + _attention(spec, stack.length, kept) + _dropout(spec, plan)
        if stack.reads_encoder:
            attention += _norm(spec, plan) + _cross_attention(spec, kept) + _dropout(spec, plan)
    both = attention + _norm(spec, plan) + _dropout(spec, plan)
    if moe is None:
        return both + _feed_forward(spec.activation, spec.d_ff, spec, kept)
    return both + _moe(moe, stack.length, spec, plan, kept)


def _share(plan: ParallelPlan) -> int:
    """Returns among how many workers the positions are cut between the blocks."""
    return plan.tensor if plan.sequence else 1


def _stream(spec: ModelSpec, plan: ParallelPlan) -> float:
    """Returns the residual stream."""
    return 4 * spec.d_model / _share(plan)


def _norm(spec: ModelSpec, plan: ParallelPlan) -> float:
    """Returns what a norm keeps: its input, the normed input and a factor, in fp32."""
    return (2 * 4 * spec.d_model + 4) / _share(plan)


def _dropout(spec: ModelSpec, plan: ParallelPlan) -> float:
    return spec.d_model / _share(plan) if spec.dropout else 0


def _attention(spec: ModelSpec, length: int, kept: Kept) -> int:
    """Returns queries, keys, values and their mix, and each head's logsumexp, or scores.

    After rotation heads lie one after the other, so the mix is copied to lie token by token.
    """
    number = {"rotary": 5, "transformer_xl": 6}.get(spec.positions, 4)
    has_scores = spec.positions in ("relative", "transformer_xl")
    scores = kept.size * spec.num_heads * length if has_scores else 4 * spec.num_heads
    return kept.inputs(spec.d_model, 3) + number * kept.size * spec.attention_width + scores


def _cross_attention(spec: ModelSpec, kept: Kept) -> int:
    """Returns queries and their mix, of a token of the decoder."""
    return kept.inputs(spec.d_model, 1) + 2 * kept.size * spec.attention_width + 4 * spec.num_heads


def _memory(spec: ModelSpec, stack: StackSpec, plan: ParallelPlan, kept: Kept) -> float:
    """Returns what all layers of a decoder keep of a token of the encoder: its state, keys and values.

    Each layer keeps copies of the state where they are rounded, or gathered from the workers that share positions.
    """
    if kept.attention_again:
        return _stream(spec, plan)
    is_gathered = plan.sequence and not kept.is_bf16
    own = kept.inputs(spec.d_model, 2) if kept.is_bf16 or is_gathered else 0
    of_layer = own + 2 * kept.size * spec.attention_width
    return stack.num_layers * of_layer + (0 if is_gathered else _stream(spec, plan))


def _feed_forward(activation: str, hidden: int, spec: ModelSpec, kept: Kept) -> int:
    number = 4 if activation in GATED else 1 if activation == "relu" else 2
    return kept.inputs(spec.d_model, 2 if activation in GATED else 1) + number * kept.size * hidden


def _moe(moe: MoESpec, length: int, spec: ModelSpec, plan: ParallelPlan, kept: Kept) -> float:
    """Returns the router's input and decision, the rows on both sides of the experts, and their hidden units."""
    has_jitter = getattr(moe.router, "jitter", 0) > 0
    router = 4 * moe.d_model * (2 if has_jitter else 1) + _decision(moe)
    if kept.experts_again:
        return router + (_stream(spec, plan) if plan.sequence else 0)
    number = 2 if moe.activation in GATED else 1
    row = kept.size * (2 * moe.d_model + number * moe.d_ff) + INDEX * INDICES_OF_EDGE
    routed = router + expected_rows(moe, length).kept * row * plan.expert_tensor / plan.tensor
    if not moe.shared_experts:
        return routed
    shared = _feed_forward(moe.activation, _shared_width(moe, plan), spec, kept)
    is_of_router = not kept.is_bf16 and not plan.sequence  # then the input is the router's
    return routed + shared - (kept.inputs(spec.d_model, 1) if is_of_router else 0)


def _decision(moe: MoESpec) -> int:
    """Returns the scores and choices of a token."""
    return 4 * moe.num_experts + 4 * INDEX * moe.router.num_choices


def _shared_width(moe: MoESpec, plan: ParallelPlan) -> int:
    """Returns the width of shared experts here; `moe` has the slices of a rank."""
    return moe.shared_width * plan.expert_tensor // plan.tensor


def _copied_weights(spec: ModelSpec, plan: ParallelPlan, kept: Kept) -> int:
    """Returns the bytes of the bf16 copies of weights that autocast keeps; experts' are made and freed one by one."""
    if not kept.is_bf16:
        return 0
    elements = spec.vocabulary_size * spec.d_model
    for stack in spec.stacks if kept.casts_weights and kept.recompute != "block" else ():
        if not kept.attention_again:
            attentions = 2 if stack.reads_encoder else 1
            elements += stack.num_layers * attentions * 4 * spec.d_model * spec.attention_width
        for moe in stack.layers:
            activation, width = spec.activation, spec.d_ff
            if moe is not None:
                activation = moe.activation
                width = 0 if kept.experts_again else _shared_width(moe, plan)
            elements += (3 if activation in GATED else 2) * spec.d_model * width
    return 2 * elements
