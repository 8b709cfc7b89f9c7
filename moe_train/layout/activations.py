"""Estimates the bytes that a rank keeps of a forward pass for its backward pass, over one microbatch.

What each part keeps was read from the tensors that autograd saves on a CPU, and the tests compare the sum with live
tensors; small tables of positions are left out. Attention is a fused kernel, which keeps no scores, but with relative
or transformer_xl positions, whose scores have gradients. `moe-train plan` counts, whatever the model.
Unless a line says otherwise, amounts are per token.
"""

from dataclasses import dataclass, replace

from moe_train.config.plan import ParallelPlan
from moe_train.config.spec import GATED, ModelSpec, MoESpec, StackSpec
from moe_train.layout.rows import expected_rows

INDEX = 8
"""Bytes of an index."""
INDICES_OF_EDGE = 6
"""Indices that the exchange keeps of each edge."""


@dataclass(frozen=True)
class Precision:
    """Describes the numbers of matrix products."""

    is_bf16: bool

    @property
    def size(self) -> int:
        """Returns the bytes of a number."""
        return 2 if self.is_bf16 else 4

    def inputs(self, width: int, products: int) -> int:
        """Returns what `products` matrix products keep of their input: in bf16, each a copy of its own."""
        return 2 * width * products if self.is_bf16 else 4 * width


def saved_bytes(
    spec: ModelSpec, plan: ParallelPlan, sequences: int, is_bf16: bool, num_passes: int = 1
) -> int:
    """Returns the bytes kept of `sequences` sequences, the logits and what the loss keeps of them included.

    As without recomputation; `parallel.sequence` makes it less.
    """
    precision, spec = Precision(is_bf16), _of_rank(spec, plan)
    tokens, source = 0.0, spec.stacks[0].length
    for stack in spec.stacks:
        per_token: float = _norm(spec.d_model) + _dropout(spec)
        per_token += sum(_block(spec, stack, moe, plan, precision) for moe in stack.layers)
        tokens += stack.length * per_token
        if stack.reads_encoder:
            tokens += source * (4 * spec.d_model + stack.num_layers * _memory(spec, precision))
    last = spec.stacks[-1].length
    head = precision.inputs(spec.d_model, 1) + (precision.size + 4) * spec.vocabulary_size
    return round(sequences * num_passes * (tokens + last * head)) + _copied_weights(spec, plan, is_bf16)


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


def _block(
    spec: ModelSpec, stack: StackSpec, moe: MoESpec | None, plan: ParallelPlan, precision: Precision
) -> float:
    attention = _attention(spec, stack.length, precision)
    if stack.reads_encoder:
        attention += _cross_attention(spec, precision)
    if moe is None:
        return attention + _norm(spec.d_model) + _feed_forward(spec.activation, spec.d_ff, spec, precision)
    routed = _moe(moe, stack.length, plan, precision)
    width = moe.shared_width * plan.expert_tensor // plan.tensor
    shared = _feed_forward(moe.activation, width, spec, precision) if moe.shared_experts else 0
    return attention + _norm(spec.d_model) + _dropout(spec) + routed + shared


def _norm(width: int) -> int:
    """Returns what a norm keeps: its input, the normed input and a factor, in fp32."""
    return 2 * 4 * width + 4


def _dropout(spec: ModelSpec) -> int:
    return spec.d_model if spec.dropout else 0


def _attention(spec: ModelSpec, length: int, precision: Precision) -> int:
    """Returns queries, keys, values and their mix, and each head's logsumexp, or scores.

    After rotation heads lie one after the other, so the mix is copied to lie token by token.
    """
    kept = {"rotary": 5, "transformer_xl": 6}.get(spec.positions, 4)
    has_scores = spec.positions in ("relative", "transformer_xl")
    scores = precision.size * spec.num_heads * length if has_scores else 4 * spec.num_heads
    of_heads = kept * precision.size * spec.attention_width + scores
    return _norm(spec.d_model) + precision.inputs(spec.d_model, 3) + of_heads + _dropout(spec)


def _cross_attention(spec: ModelSpec, precision: Precision) -> int:
    """Returns queries and their mix, of a token of the decoder."""
    of_heads = 2 * precision.size * spec.attention_width + 4 * spec.num_heads
    return _norm(spec.d_model) + precision.inputs(spec.d_model, 1) + of_heads + _dropout(spec)


def _memory(spec: ModelSpec, precision: Precision) -> int:
    """Returns keys and values of a token of the encoder, in one layer of the decoder."""
    copies = precision.inputs(spec.d_model, 2) if precision.is_bf16 else 0
    return copies + 2 * precision.size * spec.attention_width


def _feed_forward(activation: str, hidden: int, spec: ModelSpec, precision: Precision) -> int:
    kept = 4 if activation in GATED else 1 if activation == "relu" else 2
    inputs = precision.inputs(spec.d_model, 2 if activation in GATED else 1)
    return inputs + kept * precision.size * hidden + _dropout(spec)


def _moe(moe: MoESpec, length: int, plan: ParallelPlan, precision: Precision) -> float:
    """Returns the router's input and scores, the rows on both sides of the experts, and their hidden units."""
    expected, choices = expected_rows(moe, length), moe.router.num_choices
    has_jitter = getattr(moe.router, "jitter", 0) > 0
    router = 4 * moe.d_model * (2 if has_jitter else 1) + 4 * moe.num_experts + 4 * INDEX * choices
    kept = 2 if moe.activation in GATED else 1
    row = precision.size * (2 * moe.d_model + kept * moe.d_ff) + INDEX * INDICES_OF_EDGE
    return router + expected.kept * row * plan.expert_tensor / plan.tensor


def _copied_weights(spec: ModelSpec, plan: ParallelPlan, is_bf16: bool) -> int:
    """Returns the bytes of the bf16 copies of weights that autocast keeps; experts' are made and freed one by one."""
    if not is_bf16:
        return 0
    elements = spec.vocabulary_size * spec.d_model
    for stack in spec.stacks:
        attentions = 2 if stack.reads_encoder else 1
        elements += stack.num_layers * attentions * 4 * spec.d_model * spec.attention_width
        for moe in stack.layers:
            activation, width = spec.activation, spec.d_ff
            if moe is not None:
                activation, width = moe.activation, moe.shared_width * plan.expert_tensor // plan.tensor
            elements += (3 if activation in GATED else 2) * spec.d_model * width
    return 2 * elements
