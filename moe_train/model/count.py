"""Parameters and FLOPs of a recipe's model: the one formula, used by every comparison. Never imports torch.

A product with a weight matrix costs 2 FLOPs per weight and token; attention's two products with the sequence
cost 4 * S * (heads * head width) per token and layer. Looking an embedding up is free, the output head is not,
norms are not counted, nor is the product of Transformer-XL's distances with their matrix, which is made once for all
sequences of a pass. The backward pass costs twice the forward pass. A token is one of the text's: what an objective
makes an encoder and a decoder read of it is counted whole. V vocabulary, S sequence length, E experts.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from moe_train.config.schema import (
    GATED,
    Recipe,
    StackPlan,
    dense_width,
    expert_activation,
    expert_width,
    head_width,
    shared_width,
    stacks,
    vocabulary_size,
)

RELATIVE_BUCKETS = 32
"""Entries of a stack's table of T5's relative position biases, for each head; its layers share the table."""


@dataclass(frozen=True)
class ModelCount:
    """What a model holds and costs."""

    parts: Mapping[str, int]
    """Parameters of each part of the model; tied embeddings are counted once, as `embedding`."""
    active_parameters: int
    """Parameters that one token meets: all, but of each MoE layer's experts only those it is sent to."""
    flops_per_token: int
    """FLOPs of one token in training, forward and backward in all passes of the objective, no token dropped,
    recomputation not counted."""

    @property
    def total_parameters(self) -> int:
        """Parameters of the whole model, over all workers."""
        return sum(self.parts.values())


def count(recipe: Recipe) -> ModelCount:
    """Count the model that `recipe` describes."""
    plans, width = stacks(recipe), recipe.model.d_model
    of_stacks = [_stack_parts(recipe, plan) for plan in plans]
    vocabulary = vocabulary_size(recipe)
    parts = {
        "embedding": vocabulary * width,
        "head": 0 if recipe.model.tied_embeddings else vocabulary * width,
        **{name: sum(of_stack[name] for of_stack in of_stacks) for name in of_stacks[0]},
    }
    forward = plans[-1].length * 2 * vocabulary * width
    for plan, of_stack in zip(plans, of_stacks, strict=True):
        forward += _stack_flops(recipe, plan, of_stack)
    return ModelCount(
        parts=parts,
        active_parameters=sum(parts.values())
        - parts["experts"]
        + sum(_active(recipe, plan) for plan in plans),
        flops_per_token=3 * forward * recipe.objective.num_passes // recipe.data.sequence_length,
    )


def _stack_parts(recipe: Recipe, plan: StackPlan) -> dict[str, int]:
    """Parameters of each part of one stack."""
    model, d = recipe.model, recipe.model.d_model
    num_moe, num_attentions = len(plan.moe_layers), 2 if plan.reads_encoder else 1
    matrices, expert_matrices = _matrices(model.activation), _matrices(expert_activation(recipe))
    positions = {
        "rotary": 0,
        "learned": plan.length * d,
        "relative": RELATIVE_BUCKETS * model.num_heads,
        "transformer_xl": plan.num_layers * (d + 2) * _attention_width(recipe),
    }
    return {
        "positions": positions[model.positions],
        "attention": num_attentions * plan.num_layers * 4 * d * _attention_width(recipe),
        "norms": ((num_attentions + 1) * plan.num_layers + 1) * d,
        "feed_forward": (plan.num_layers - num_moe) * matrices * d * dense_width(recipe),
        "router": sum(recipe.moe.router.num_parameters(d, number) for number in plan.num_experts),
        "shared_experts": num_moe * expert_matrices * d * shared_width(recipe),
        "experts": sum(plan.num_experts) * _expert_weights(recipe),
    }


def _stack_flops(recipe: Recipe, plan: StackPlan, parts: Mapping[str, int]) -> int:
    """FLOPs of one sequence's forward pass through a stack.

    Cross-attention makes its keys and values from the source, and scores each token against all of it.
    """
    source, _ = recipe.objective.lengths(recipe.data.sequence_length)
    matrix = plan.num_layers * recipe.model.d_model * _attention_width(recipe)
    blocks = parts["feed_forward"] + parts["shared_experts"] + _routed(recipe, plan)
    multiplied = plan.length * (4 * matrix + blocks)
    attended = plan.length
    if plan.reads_encoder:
        multiplied += plan.length * 2 * matrix + source * 2 * matrix
        attended += source
    scored = plan.length * (4 * attended + 2 * _distances(recipe, plan))
    return round(2 * multiplied + scored * plan.num_layers * _attention_width(recipe))


def _distances(recipe: Recipe, plan: StackPlan) -> int:
    """Distances with which Transformer-XL's positions score a token."""
    if recipe.model.positions != "transformer_xl":
        return 0
    return plan.length if plan.is_causal else 2 * plan.length - 1


def _routed(recipe: Recipe, plan: StackPlan) -> float:
    """Multiplications of one token in the routers and the routed experts of a stack: as the kind of router says."""
    router, d = recipe.moe.router, recipe.model.d_model
    of_layers = (
        router.num_products(d, number, plan.length)
        + router.experts_per_token(number, plan.length) * _expert_weights(recipe)
        for number in plan.num_experts
    )
    return sum(of_layers, 0.0)


def _active(recipe: Recipe, plan: StackPlan) -> int:
    """Of the parameters of a stack's experts, those that one token meets."""
    chosen = sum(min(recipe.moe.router.num_choices, number) for number in plan.num_experts)
    return chosen * _expert_weights(recipe)


def _expert_weights(recipe: Recipe) -> int:
    """Parameters of one expert."""
    return _matrices(expert_activation(recipe)) * recipe.model.d_model * expert_width(recipe)


def _attention_width(recipe: Recipe) -> int:
    """Width of all heads together."""
    return recipe.model.num_heads * head_width(recipe.model)


def _matrices(activation: str) -> int:
    """Weight matrices of a feed-forward block or an expert."""
    return 3 if activation in GATED else 2
