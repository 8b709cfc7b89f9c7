"""Counts parameters and FLOPs of a model by the one formula that every comparison uses. Never imports torch.

A product with a weight matrix costs 2 FLOPs per weight and token; attention's two products with the sequence
cost 4 * S * (heads * head width) per token and layer. Looking an embedding up is free, the output head is not,
norms are not counted, nor is the product of Transformer-XL's distances with their matrix, which is made once for all
sequences of a pass. The backward pass costs twice the forward pass. V vocabulary, S sequence length, E experts.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from moe_train.config.spec import GATED, ModelSpec, MoESpec, StackSpec

RELATIVE_BUCKETS = 32
"""Entries of a stack's table of T5's relative position biases, for each head; its layers share the table."""


@dataclass(frozen=True)
class ModelCount:
    """Holds the size and cost of a model."""

    parts: Mapping[str, int]
    """Parameters of each part of the model; tied embeddings are counted once, as `embedding`."""
    active_parameters: int
    """Parameters that one token meets: all, but of each MoE layer's experts only those it is sent to."""
    forward_flops: int
    """FLOPs of the forward pass of one sequence, or of a pair of source and target, no token dropped."""

    @property
    def total_parameters(self) -> int:
        """Parameters of the whole model, over all workers."""
        return sum(self.parts.values())

    def flops_per_token(self, window: int, num_passes: int = 1) -> int:
        """Returns the FLOPs of one token of text in training, forward and backward in all passes of the objective.

        A sequence, or a pair, is made of `window` tokens of text. Recomputation is not counted.
        """
        return 3 * self.forward_flops * num_passes // window


def count(spec: ModelSpec) -> ModelCount:
    """Counts the parameters and FLOPs of a model."""
    of_stacks = [_stack_parts(spec, stack) for stack in spec.stacks]
    embedding = spec.vocabulary_size * spec.d_model
    parts = {
        "embedding": embedding,
        "head": 0 if spec.tied_embeddings else embedding,
        **{name: sum(of_stack[name] for of_stack in of_stacks) for name in of_stacks[0]},
    }
    forward = spec.stacks[-1].length * 2 * embedding
    for stack, of_stack in zip(spec.stacks, of_stacks, strict=True):
        forward += _stack_flops(spec, stack, of_stack)
    active = sum(min(moe.router.num_choices, moe.num_experts) * _expert_weights(moe) for moe in spec.moe)
    return ModelCount(
        parts=parts,
        active_parameters=sum(parts.values()) - parts["experts"] + active,
        forward_flops=forward,
    )


def _stack_parts(spec: ModelSpec, stack: StackSpec) -> dict[str, int]:
    """Returns the parameters of each part of one stack."""
    d, num_attentions = spec.d_model, 2 if stack.reads_encoder else 1
    num_dense = stack.num_layers - len(stack.moe)
    positions = {
        "rotary": 0,
        "learned": stack.length * d,
        "relative": RELATIVE_BUCKETS * spec.num_heads,
        "transformer_xl": stack.num_layers * (d + 2) * spec.attention_width,
    }
    return {
        "positions": positions[spec.positions],
        "attention": num_attentions * stack.num_layers * 4 * d * spec.attention_width,
        "norms": ((num_attentions + 1) * stack.num_layers + 1) * d,
        "feed_forward": num_dense * _matrices(spec.activation) * d * spec.d_ff,
        "router": sum(moe.router.num_parameters(d, moe.num_experts) for moe in stack.moe),
        "shared_experts": sum(moe.shared_experts * _expert_weights(moe) for moe in stack.moe),
        "experts": sum(moe.num_experts * _expert_weights(moe) for moe in stack.moe),
    }


def _stack_flops(spec: ModelSpec, stack: StackSpec, parts: Mapping[str, int]) -> int:
    """Returns the FLOPs of one sequence's forward pass through a stack.

    Cross-attention makes its keys and values from the source, and scores each token against all of it.
    """
    matrix = stack.num_layers * spec.d_model * spec.attention_width
    routed = sum(_routed(moe, stack.length) for moe in stack.moe)
    blocks = parts["feed_forward"] + parts["shared_experts"] + routed
    multiplied = stack.length * (4 * matrix + blocks)
    attended = stack.length
    if stack.reads_encoder:
        source = spec.stacks[0].length
        multiplied += stack.length * 2 * matrix + source * 2 * matrix
        attended += source
    scored = stack.length * (4 * attended + 2 * _distances(spec, stack))
    return round(2 * multiplied + scored * stack.num_layers * spec.attention_width)


def _distances(spec: ModelSpec, stack: StackSpec) -> int:
    """Returns the number of distances for which Transformer-XL's positions score a token."""
    if spec.positions != "transformer_xl":
        return 0
    return stack.length if stack.is_causal else 2 * stack.length - 1


def _routed(moe: MoESpec, length: int) -> float:
    """Returns the multiplications of one token in a layer's router and routed experts, by the kind of router."""
    router, number = moe.router, moe.num_experts
    in_router = router.num_products(moe.d_model, number, length)
    return float(in_router + router.experts_per_token(number, length) * _expert_weights(moe))


def _expert_weights(moe: MoESpec) -> int:
    """Returns the parameters of one expert."""
    return _matrices(moe.activation) * moe.d_model * moe.d_ff


def _matrices(activation: str) -> int:
    """Returns the number of weight matrices of a feed-forward block or an expert."""
    return 3 if activation in GATED else 2
