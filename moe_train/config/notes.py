"""Finds what is valid in a recipe but may surprise: `moe-train show` prints it, and nothing is refused for it."""

from collections.abc import Iterator
from operator import attrgetter

from moe_train.config.capacity import capacity, chance_cv, dropped_share, effective_factor
from moe_train.config.kinds.router.router import BALANCE_COEFFICIENTS
from moe_train.config.layout import plan_of
from moe_train.config.registry import GUARDS, REGISTRY
from moe_train.config.resolve import spec_of, with_equal_layers
from moe_train.config.schema import Recipe
from moe_train.config.spec import StackSpec
from moe_train.config.timing import timing_notes

FAR_FROM_ITS_FACTOR = 1.25
"""A capacity that differs from its factor by more than this ratio is a surprise."""


LARGE_SCALE = 1.0
"""A scale of the router's weights above which most tokens have one clear favourite from the start."""
UNEVEN_CV = 0.3
"""The CV of loads for which `limits` estimates the drops: uneven, but not alarmingly so."""


def limits(recipe: Recipe) -> list[str]:
    """Returns the slots and expected drops of each capacity factor in a routing group, where capacity is counted.

    Loads that are even over a whole run are uneven in a group of a hundred tokens, which is why tokens are dropped.
    """
    moe, choices = recipe.moe, recipe.moe.router.num_choices
    verb = "sends on" if getattr(moe.router, "reroutes", 0) else "drops"
    sentences = []
    for stack in (stack for stack in spec_of(recipe).stacks if stack.moe):
        tokens = moe.group_sequences * stack.length
        for experts, layers in _sizes(stack):
            sizes = tokens, experts, choices
            mean, chance = choices * tokens / experts, chance_cv(*sizes)
            for key, factor in _factors(recipe).items():
                slots = capacity(moe.capacity_convention, factor, *sizes, moe.min_capacity)
                sentences.append(
                    f"{key}={factor:g}: {slots} slot{'s' * (slots != 1)} an expert in each group of {tokens:,} tokens "
                    f"of the {stack.name}{layers}, and {mean:.3g} assignments at even loads; a CV of {UNEVEN_CV} in "
                    f"the group {verb} {dropped_share(slots, mean, UNEVEN_CV):.1%} of them, chance alone (a CV of "
                    f"{chance:.2f}) {dropped_share(slots, mean, chance):.1%}"
                )
    return sentences


def _sizes(stack: StackSpec) -> Iterator[tuple[int, str]]:
    """Yields each number of experts in a stack, with words for its layers if the stack has other numbers too."""
    numbers = sorted({moe.num_experts for moe in stack.moe})
    for number in numbers:
        yield number, f" in layers of {number} experts" if len(numbers) > 1 else ""


def notes(recipe: Recipe, workers: int | None = None, workers_per_node: int | None = None) -> list[str]:
    """Returns a sentence for each surprise; `recipe` must have no problems. None: the number is not known."""
    moe_notes = (
        [
            *_dropped_at_balance(recipe),
            *_far_from_its_factor(recipe),
            *_dropped_in_validation_only(recipe),
            *_not_causal(recipe),
            *_counted_first(recipe),
            *dict.fromkeys(
                note for each in with_equal_layers(recipe) for note in recipe.moe.router.notes(each)
            ),
            *_may_collapse(recipe),
        ]
        if spec_of(recipe).moe
        else []
    )
    return [*start_notes(recipe, workers, workers_per_node), *moe_notes, *_of_packages(recipe)]


def start_notes(
    recipe: Recipe, workers: int | None = None, workers_per_node: int | None = None
) -> Iterator[str]:
    """Yields the notes that `run`, `submit`, `resume` and `sweep` print, beside `show`: nothing is too late for them.

    Raises LayoutError if the degrees do not fit `workers`.
    """
    yield from timing_notes(recipe)
    if workers_per_node is not None:
        yield from _host_notes(recipe, plan_of(recipe.parallel, workers).workers, workers_per_node)


def _host_notes(recipe: Recipe, workers: int, workers_per_node: int) -> Iterator[str]:
    """Yields a sentence if tensor groups span hosts, as they do if a host has no whole number of them.

    Ranks are numbered host by host, and those of a tensor group are neighbours.
    """
    tensor = recipe.parallel.tensor
    if workers > workers_per_node and workers_per_node % tensor:
        yield (
            f"parallel.tensor={tensor}: does not divide the {workers_per_node} workers of a node, so tensor groups "
            "span nodes, and the collectives of every block cross the network; use a multiple of it for "
            "--workers-per-node, or a smaller parallel.tensor"
        )


def _of_packages(recipe: Recipe) -> Iterator[str]:
    """Yields the packages that anyone who repeats the run needs too."""
    chosen = {place: (kinds, attrgetter(place)(recipe).kind) for place, kinds in REGISTRY.items()}
    chosen |= {f"guards[{place}]": (GUARDS, guard.kind) for place, guard in enumerate(recipe.guards)}
    for place, (kinds, kind) in chosen.items():
        if package := kinds[kind].package:
            yield f"{place}.kind={kind}: comes from the package {package}, which every worker must have"


def _factors(recipe: Recipe) -> dict[str, float]:
    """Returns the capacity factors that are set, by key."""
    factors = {
        "moe.capacity_factor": recipe.moe.capacity_factor,
        "moe.eval_capacity_factor": recipe.moe.eval_capacity_factor,
    }
    return {key: factor for key, factor in factors.items() if factor is not None}


def _dropped_at_balance(recipe: Recipe) -> Iterator[str]:
    """Warns of a mesh-tensorflow capacity, which does not count choices: see `config/capacity.py`."""
    moe, choices = recipe.moe, recipe.moe.router.num_choices
    spec = spec_of(recipe)
    longest = max(stack.length for stack in spec.stacks if stack.moe)
    per_expert = choices * moe.group_sequences * longest / min(spec.num_experts)
    if moe.capacity_convention != "mesh" or per_expert <= moe.min_capacity:
        return
    for key, factor in _factors(recipe).items():
        if factor < choices:
            yield (
                f"{key}={factor:g}: moe.capacity_convention=mesh does not count choices, and a token has {choices}, so "
                f"about {1 - factor / choices:.0%} of the assignments are dropped even at perfect balance; "
                f"use {key}={choices} or more, or moe.capacity_convention=deepspeed"
            )


def _far_from_its_factor(recipe: Recipe) -> Iterator[str]:
    """Warns if rounding or the minimum number of slots changes the factor, as in small groups with many experts."""
    for stack in (stack for stack in spec_of(recipe).stacks if stack.moe):
        tokens = recipe.moe.group_sequences * stack.length
        for number, layers in _sizes(stack):
            if not (surprises := list(_other_factors(recipe, tokens, number))):
                continue
            yield (
                f"{' and '.join(surprises)}{layers} in the {stack.name}: of a group of {tokens:,} tokens an "
                f"expert takes a whole number, and at least moe.min_capacity={recipe.moe.min_capacity}; a larger "
                "moe.group_sequences or a smaller moe.min_capacity comes nearer"
            )


def _other_factors(recipe: Recipe, tokens: int, num_experts: int) -> Iterator[str]:
    """Yields each capacity factor whose effective value in a group of `tokens` tokens differs, with that value."""
    moe, choices = recipe.moe, recipe.moe.router.num_choices
    sizes = tokens, num_experts, choices
    for key, factor in _factors(recipe).items():
        slots = capacity(moe.capacity_convention, factor, *sizes, moe.min_capacity)
        effective = effective_factor(moe.capacity_convention, slots, *sizes)
        intended = min(factor, effective_factor(moe.capacity_convention, tokens, *sizes))
        if not intended / FAR_FROM_ITS_FACTOR <= effective <= intended * FAR_FROM_ITS_FACTOR:
            yield f"{key}={factor:g} is {effective:.3g} in effect ({slots} slot{'s' * (slots != 1)} an expert)"


def _dropped_in_validation_only(recipe: Recipe) -> Iterator[str]:
    """Warns if only training is dropless, which is rarely intended."""
    factor = recipe.moe.eval_capacity_factor
    if recipe.moe.capacity_factor is None and factor is not None:
        yield (
            f"moe.eval_capacity_factor={factor:g}: validation drops what is beyond it, while training, with "
            "moe.capacity_factor=null, drops nothing; null is dropless in both"
        )


def _not_causal(recipe: Recipe) -> Iterator[str]:
    """Warns if a later token's first choice can take the slot of a token's second choice."""
    choices, factors = recipe.moe.router.num_choices, _factors(recipe)
    if choices > 1 and factors and recipe.moe.router.choices_compete and spec_of(recipe).has_causal_moe:
        limits = " and ".join(f"{key}={factor:g}" for key, factor in factors.items())
        yield (
            f"{limits}: with {choices} choices a token's second choice can lose its slot to the first choice of a "
            "later token (GShard's order), so what a token gets depends on tokens after it; null keeps the model causal"
        )


def _counted_first(recipe: Recipe) -> Iterator[str]:
    """Warns of a loss over the whole batch, which needs the loads of all microbatches before the first gradient."""
    micro, batch = recipe.data.micro_batch, recipe.data.global_batch
    workers = recipe.parallel.data or 1
    if micro is not None and micro * workers < batch and recipe.moe.router.learns_from_batch:
        yield (
            f"data.micro_batch={micro} with moe.router.balance_over=batch: where a worker has more than one microbatch "
            f"(fewer than {batch // micro} workers), every update counts the loads first, in a forward pass over all "
            "of them: about a third more time; moe.router.balance_over=group needs none"
        )


def _may_collapse(recipe: Recipe) -> Iterator[str]:
    """Yields what invites a router to leave experts unused."""
    router = recipe.moe.router
    coefficients = {name: getattr(router, name) for name in BALANCE_COEFFICIENTS if hasattr(router, name)}
    if coefficients and not any(coefficients.values()) and not getattr(router, "bias_rate", 0.0):
        keys = ", ".join(f"moe.router.{name}=0" for name in coefficients)
        yield f"{keys}: nothing keeps the loads of the experts even; alarms tell if some fall out of use"
    scale = getattr(router, "init_scale", None)
    if scale is not None and scale > LARGE_SCALE:
        yield (
            f"moe.router.init_scale={scale:g}: the router is certain before it has learned anything, and the experts "
            f"that it prefers then may stay the only ones; model.init_scale is {recipe.model.init_scale:g}"
        )
