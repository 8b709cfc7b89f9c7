"""Makes the spec of a model from a recipe: the one place where a width that was left open gets its value.

A recipe with problems has a spec too, because `check.py` reads it to find them.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, repeat

from moe_train.config.kinds.dispatch import AllToAllDispatchConfig, AutoDispatchConfig, DispatchConfig
from moe_train.config.kinds.engine import OwnEngineConfig
from moe_train.config.schema import Recipe
from moe_train.config.spec import ModelSpec, MoESpec, StackSpec


def uncompiled(recipe: Recipe) -> Recipe:
    """Returns the same recipe for what does not train: nothing is prepared for torch.compile, which takes seconds."""
    if not isinstance(recipe.engine, OwnEngineConfig):
        return recipe
    return replace(recipe, engine=replace(recipe.engine, compile="none"))


def spec_of(recipe: Recipe) -> ModelSpec:
    """Returns the model that `recipe` describes."""
    model = recipe.model
    return ModelSpec(
        stacks=_stacks(recipe),
        vocabulary_size=recipe.data.tokenizer.size + recipe.objective.num_extra_tokens,
        d_model=model.d_model,
        num_heads=model.num_heads,
        head_width=model.head_width or model.d_model // max(model.num_heads, 1),
        d_ff=_dense_width(recipe),
        activation=model.activation,
        positions=model.positions,
        dropout=model.dropout,
        tied_embeddings=model.tied_embeddings,
        init_scale=model.init_scale,
        depth=model.depth,
    )


def moe_spec(recipe: Recipe, num_experts: int) -> MoESpec:
    """Returns an MoE layer of the recipe's model that has `num_experts` experts."""
    moe = recipe.moe
    return MoESpec(
        num_experts=num_experts,
        d_model=recipe.model.d_model,
        d_ff=moe.d_ff or _dense_width(recipe),
        shared_experts=moe.shared_experts,
        activation=moe.activation or recipe.model.activation,
        expert_dropout=moe.expert_dropout,
        scale_expert_gradients=moe.scale_expert_gradients,
        capacity_factor=moe.capacity_factor,
        eval_capacity_factor=moe.eval_capacity_factor,
        capacity_convention=moe.capacity_convention,
        min_capacity=moe.min_capacity,
        group_sequences=moe.group_sequences,
        router=moe.router,
        dispatch=_dispatch(recipe),
    )


def _dispatch(recipe: Recipe) -> DispatchConfig:
    """Returns the dispatcher; what overlaps the exchange leaves `auto` no choice."""
    overlaps = isinstance(recipe.engine, OwnEngineConfig) and recipe.engine.overlap != "none"
    if overlaps and isinstance(recipe.moe.dispatch, AutoDispatchConfig):
        return AllToAllDispatchConfig()
    return recipe.moe.dispatch


def with_equal_layers(recipe: Recipe) -> Iterator[Recipe]:
    """Yields the recipe once for each number of experts that a layer has, as if all MoE layers had that many.

    For rules of the kinds: they read one number, and must hold for each layer.
    """
    for number in sorted({number for number in spec_of(recipe).num_experts if number > 0}):
        yield replace(recipe, moe=replace(recipe.moe, num_experts=number))


def _dense_width(recipe: Recipe) -> int:
    return recipe.model.d_ff or 4 * recipe.model.d_model


def _stacks(recipe: Recipe) -> tuple[StackSpec, ...]:
    """Returns the stacks of the model, the encoder first."""
    model, joined = recipe.model, recipe.model.architecture == "encoder_decoder"
    source_length, length = recipe.objective.lengths(recipe.data.sequence_length)
    number = recipe.moe.num_experts
    # A list may be too short; check.py says so.
    numbers = chain(number, repeat(0)) if isinstance(number, list) else repeat(number)
    stacks, below = [], 0
    if model.architecture != "decoder":
        below = (model.num_encoder_layers if joined else None) or model.num_layers
        layers = _layers(recipe, "encoder", 0, below, numbers)
        stacks.append(StackSpec("encoder", layers, source_length, False, False))
    if model.architecture != "encoder":
        layers = _layers(recipe, "decoder", below, model.num_layers, numbers)
        stacks.append(StackSpec("decoder", layers, length, True, joined))
    return tuple(stacks)


def _layers(
    recipe: Recipe, stack: str, below: int, num_layers: int, numbers: Iterator[int]
) -> tuple[MoESpec | None, ...]:
    """Returns the layers of a stack that follows `below` others; its MoE layers take their experts from `numbers`."""
    moe_layers = _placed(recipe, stack, below, num_layers)
    return tuple(
        moe_spec(recipe, next(numbers)) if layer in moe_layers else None for layer in range(num_layers)
    )


def _placed(recipe: Recipe, stack: str, below: int, num_layers: int) -> set[int]:
    """Returns the MoE layers of a stack: those listed, or every n-th."""
    moe = recipe.moe
    if moe.layers is not None:
        return {layer for layer in range(num_layers) if below + layer in moe.layers}
    joined = recipe.model.architecture == "encoder_decoder"
    if not moe.every or moe.every < 0 or (joined and moe.stacks not in ("both", stack)):
        return set()
    first = moe.every - 1 if moe.first is None else moe.first
    return {layer for layer in range(first, num_layers, moe.every) if layer >= moe.dense_first}
