"""Checks which layers are Mixture-of-Experts layers, and how many experts each has."""

from collections.abc import Iterator

from moe_train.config.problem import Problem
from moe_train.config.resolve import spec_of
from moe_train.config.schema import MoEConfig, Recipe


def placement_problems(recipe: Recipe) -> Iterator[Problem]:
    """Yields problems with the positions of the MoE layers and with their numbers of experts."""
    yield from _experts(recipe)
    moe = recipe.moe
    if moe.layers is not None:
        yield from _listed(recipe, moe.layers)
    elif moe.every is None:
        yield Problem(
            "moe.every",
            None,
            "must be set if moe.layers is null too, or the MoE layers are unknown",
            "set moe.every=2, list the layers in moe.layers, or set moe.every=0 for a dense model",
        )
    else:
        yield from _every_nth(recipe, moe.every)


def _experts(recipe: Recipe) -> Iterator[Problem]:
    number = recipe.moe.num_experts
    lowest = min(number, default=1) if isinstance(number, list) else number
    if lowest < 1:
        yield Problem("moe.num_experts", number, "must be at least 1", "set moe.num_experts=1 or more")
    layers = spec_of(recipe).moe_layers
    if isinstance(number, list) and layers and len(number) != len(layers):
        yield Problem(
            "moe.num_experts",
            number,
            f"has {len(number)} number{'s' * (len(number) != 1)}, but the model has {len(layers)} MoE "
            f"layer{'s' * (len(layers) != 1)}: {', '.join(map(str, layers))} (counted from 0)",
            "give one number for each of them, or one for all",
        )


def _listed(recipe: Recipe, layers: list[int]) -> Iterator[Problem]:
    if recipe.moe.every is not None:
        yield Problem(
            "moe.layers",
            layers,
            f"cannot be combined with moe.every={recipe.moe.every}, as both place the MoE layers",
            "set one of the two to null",
        )
    defaults = MoEConfig()
    for key in ("first", "dense_first", "stacks"):
        value, default = getattr(recipe.moe, key), getattr(defaults, key)
        if value != default:
            yield Problem(
                f"moe.{key}",
                value,
                "applies only with moe.every, but here moe.layers lists the MoE layers of all stacks",
                f"set moe.{key}={'null' if default is None else default}",
            )
    if not layers:
        yield Problem("moe.layers", layers, "names no layer", "set moe.every=0 for a dense model")
    elif layers != sorted(set(layers)):
        yield Problem(
            "moe.layers",
            layers,
            "must name each layer once, in ascending order",
            f"write moe.layers={sorted(set(layers))}",
        )
    num_layers = sum(stack.num_layers for stack in spec_of(recipe).stacks)
    for layer in layers:
        if not 0 <= layer < num_layers:
            yield Problem(
                "moe.layers",
                layers,
                f"names layer {layer}, but the model has the layers {_numbered(recipe)}, counted from 0",
                "choose among these",
            )


def _numbered(recipe: Recipe) -> str:
    """Returns the layers of the model: "0 to 11", or those of each stack."""
    ranges, below = [], 0
    for stack in spec_of(recipe).stacks:
        ranges.append((f"{below} to {below + stack.num_layers - 1}", stack.name))
        below += stack.num_layers
    if len(ranges) == 1:
        return ranges[0][0]
    return " and ".join(f"{numbers} in the {name}" for numbers, name in ranges)


def _every_nth(recipe: Recipe, every: int) -> Iterator[Problem]:
    moe, joined = recipe.moe, recipe.model.architecture == "encoder_decoder"
    negative = [key for key in ("every", "first", "dense_first") if (getattr(moe, key) or 0) < 0]
    for key in negative:
        yield Problem(f"moe.{key}", getattr(moe, key), "must be at least 0", f"set moe.{key}=0 or more")
    if negative or every == 0:
        return
    spec = spec_of(recipe)
    deepest = max(
        stack.num_layers for stack in spec.stacks if not joined or moe.stacks in ("both", stack.name)
    )
    if moe.first is not None and moe.dense_first:
        yield Problem(
            "moe.dense_first",
            moe.dense_first,
            f"cannot be combined with moe.first={moe.first}, as both say where the MoE layers begin",
            "set moe.dense_first=0, or moe.first=null",
        )
    elif moe.first is not None and moe.first >= deepest:
        yield Problem(
            "moe.first",
            moe.first,
            f"is not among the layers 0 to {deepest - 1}, so no layer would be an MoE layer",
            "lower it, or set moe.every=0 for a dense model",
        )
    elif moe.first is None and every > deepest:
        yield Problem(
            "moe.every",
            every,
            f"is above model.num_layers={deepest}, so no layer would be an MoE layer",
            "lower it, set moe.first to the first one, or set moe.every=0 for a dense model",
        )
    elif not spec.moe:
        yield Problem(
            "moe.dense_first",
            moe.dense_first,
            f"leaves no MoE layer among model.num_layers={recipe.model.num_layers} with moe.every={every}",
            "lower it, or set moe.every=0 for a dense model",
        )
