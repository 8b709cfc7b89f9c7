"""Finds every problem of a recipe before anything starts, and has the rules that involve more than one section.

The rules of single fields are in `ranges.py`, those of the positions of MoE layers in `placement.py`, those of workers
in `layout.py`, those of kinds beside the kinds. `moe-train show` prints all problems; `run` and `submit` refuse a
recipe that has any.
"""

from collections.abc import Iterator
from operator import attrgetter

from moe_train.config.divisors import choose_divisor
from moe_train.config.guards import guard_problems
from moe_train.config.kinds.kind import KindConfig
from moe_train.config.layout import batch_problems, layout_problems
from moe_train.config.placement import placement_problems
from moe_train.config.plug_ins import callback_problem
from moe_train.config.problem import Problem
from moe_train.config.ranges import empty_text, not_finite, out_of_range
from moe_train.config.registry import REGISTRY
from moe_train.config.resolve import spec_of, with_equal_layers
from moe_train.config.schema import Recipe
from moe_train.config.slabs import slab_problems
from moe_train.errors import LayoutError, RecipeError


def problems(recipe: Recipe, workers: int | None = None) -> list[Problem]:
    """Returns every problem that prevents `recipe` from running (on `workers` workers, if their number is known)."""
    of_sections = list(not_finite(recipe)) or [
        *out_of_range(recipe),
        *empty_text(recipe),
        *recipe.monitor.wandb.check(recipe.name),
        *_model(recipe),
        *_corpus(recipe),
        *_kinds(recipe),
        *_callbacks(recipe),
        *guard_problems(recipe),
        *slab_problems(recipe),
    ]
    return of_sections or [
        *layout_problems(recipe, workers),
        *batch_problems(recipe, workers),
        *recipe.stability.check(recipe.checkpoint.every, recipe.checkpoint.keep_last),
    ]


def require_sound(recipe: Recipe, workers: int | None = None) -> None:
    """Raises LayoutError or RecipeError with every problem of the recipe."""
    if broken := problems(recipe, workers):
        layout_only = all(problem.key.startswith("parallel.") for problem in broken)
        raise (LayoutError if layout_only else RecipeError)("\n".join(map(str, broken)))


def _model(recipe: Recipe) -> Iterator[Problem]:
    model, head_width = recipe.model, spec_of(recipe).head_width
    if model.num_heads >= 1 and model.head_width is None and model.d_model % model.num_heads:
        yield Problem(
            "model.num_heads",
            model.num_heads,
            f"must divide model.d_model={model.d_model}",
            f"{choose_divisor(model.d_model)}, or set model.head_width",
        )
    elif model.num_heads >= 1 and model.positions == "rotary" and head_width % 2:
        yield Problem(
            "model.num_heads" if model.head_width is None else "model.head_width",
            model.num_heads if model.head_width is None else model.head_width,
            f"must give an even head width for rotary positions, not {head_width}",
            "choose another number of heads or an even model.head_width, or model.positions=learned",
        )
    if model.positions == "transformer_xl" and model.d_model % 2:
        yield Problem(
            "model.d_model",
            model.d_model,
            "must be even with model.positions=transformer_xl, which needs as many sines as cosines",
            "choose an even width, or model.positions=relative",
        )
    yield from _architecture(recipe)
    yield from placement_problems(recipe)


def _architecture(recipe: Recipe) -> Iterator[Problem]:
    """Checks the architecture against the objective, and that options of other architectures are unset."""
    architecture, objective = recipe.model.architecture, recipe.objective
    if architecture not in objective.architectures:
        trained = " or ".join(objective.architectures)
        yield Problem(
            "model.architecture",
            architecture,
            f"cannot be trained by objective.kind={objective.kind}, which needs {trained}",
            f"set model.architecture={objective.architectures[0]}, or choose another objective.kind",
        )
    if architecture != "encoder_decoder":
        for key, value, default in (
            ("model.num_encoder_layers", recipe.model.num_encoder_layers, None),
            ("moe.stacks", recipe.moe.stacks, "both"),
        ):
            if value != default:
                yield Problem(
                    key,
                    value,
                    f"applies only to model.architecture=encoder_decoder, not to {architecture}",
                    f"leave {key} out",
                )


def _corpus(recipe: Recipe) -> Iterator[Problem]:
    """Requires sentence pairs for translation, and text for every other objective."""
    corpus, objective = recipe.data.corpus, recipe.objective
    if corpus.parallel and not objective.reads_pairs(recipe):
        yield Problem(
            "data.corpus.kind",
            corpus.kind,
            f"has sentence pairs, but objective.kind={objective.kind} with "
            f"model.architecture={recipe.model.architecture} needs text",
            "set objective.kind=translation and model.architecture=encoder_decoder, or use another corpus",
        )
    elif not corpus.parallel and objective.reads_pairs(recipe):
        yield Problem(
            "data.corpus.kind",
            corpus.kind,
            f"has text, but objective.kind={objective.kind} with "
            f"model.architecture={recipe.model.architecture} needs sentence pairs",
            "use data.corpus.kind=parallel_debian, or parallel_files with your own folder",
        )


def _callbacks(recipe: Recipe) -> Iterator[Problem]:
    for name in dict.fromkeys(recipe.monitor.callbacks):
        if problem := callback_problem(name):
            yield problem


def _kinds(recipe: Recipe) -> Iterator[Problem]:
    equal = list(with_equal_layers(recipe))
    for place in REGISTRY:
        config = attrgetter(place)(recipe)
        assert isinstance(config, KindConfig)
        variants = equal if place.startswith("moe.") else [recipe]
        yield from {str(problem): problem for each in variants for problem in config.check(each)}.values()
    router, spec = recipe.moe.router, spec_of(recipe)
    for stack in spec.stacks:
        if stack.moe:
            yield from router.check_stack(stack.name, stack.length)
    if router.sees_later_tokens and spec.has_causal_moe:
        yield Problem(
            "moe.router.kind",
            router.kind,
            "routes a token by later tokens too, so a causal stack of layers "
            f"(model.architecture={recipe.model.architecture}) would see what it has to predict, and cannot generate",
            "use a router that looks at one token at a time, such as moe.router.kind=switch"
            + (", or moe.stacks=encoder" if recipe.model.architecture == "encoder_decoder" else ""),
        )
