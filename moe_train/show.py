"""Runs `moe-train show`: prints a recipe before it runs, with its sizes, its layout and all its problems.

Imports no torch.
"""

import json

from moe_cluster.contract import DONE, USAGE
from moe_train.config.check import problems
from moe_train.config.layout import plan_of
from moe_train.config.load import load_recipe, to_dict, to_yaml
from moe_train.config.notes import limits, notes
from moe_train.config.resolve import spec_of
from moe_train.config.schema import Recipe
from moe_train.data.corpora.there import require_text
from moe_train.errors import DataError
from moe_train.layout.text import layout
from moe_train.model.count import ModelCount, count


def show(
    recipe_name: str,
    overrides: list[str],
    workers: int | None,
    as_json: bool,
    workers_per_node: int | None = None,
) -> int:
    """Print the recipe; returns USAGE if it has problems. Raises RecipeError if it cannot be read at all."""
    recipe = load_recipe(recipe_name, overrides)
    counted = count(spec_of(recipe))
    flops = counted.flops_per_token(recipe.data.sequence_length, recipe.objective.num_passes)
    errors = [str(problem) for problem in problems(recipe, workers)]
    if as_json:
        content = {
            "recipe": to_dict(recipe),
            "total_parameters": counted.total_parameters,
            "active_parameters": counted.active_parameters,
            "flops_per_token": flops,
            "problems": errors,
            "notes": [] if errors else _all_notes(recipe, workers, workers_per_node),
        }
        print(json.dumps(content, indent=1))
    else:
        print(to_yaml(recipe))
        lines = [
            *_model(counted, flops),
            "",
            *(_problems(errors) if errors else _sound(recipe, workers, workers_per_node)),
        ]
        print("\n".join(lines))
    return USAGE if errors else DONE


def _model(counted: ModelCount, flops_per_token: int) -> list[str]:
    parts = [f"  {name:<20}{number:>20,}" for name, number in counted.parts.items() if number]
    return [
        f"{'total parameters':<22}{counted.total_parameters:>20,}",
        *parts,
        f"{'active parameters':<22}{counted.active_parameters:>20,}",
        f"{'FLOPs per token':<22}{flops_per_token:>20,}  (forward and backward)",
    ]


def _sound(recipe: Recipe, workers: int | None, workers_per_node: int | None) -> list[str]:
    """Returns what is said of a recipe without problems."""
    drawn = layout(recipe, plan_of(recipe.parallel, workers), workers_per_node)
    return [*drawn, "", *_limits(recipe), *_notes(_all_notes(recipe, workers, workers_per_node))]


def _problems(errors: list[str]) -> list[str]:
    return ["problems:", *(f"  {sentence}" for sentence in errors)]


def _all_notes(recipe: Recipe, workers: int | None, workers_per_node: int | None) -> list[str]:
    """Returns all notes. Text that is missing on this machine is a note, not a problem: a cluster may have it."""
    sentences = notes(recipe, workers, workers_per_node)
    try:
        require_text(recipe.data.corpus)
    except DataError as error:
        sentences.append(str(error))
    return sentences


def _limits(recipe: Recipe) -> list[str]:
    sentences = limits(recipe)
    return ["capacity:", *(f"  {sentence}" for sentence in sentences), ""] if sentences else []


def _notes(sentences: list[str]) -> list[str]:
    lines = ["notes:", *(f"  {sentence}" for sentence in sentences), ""] if sentences else []
    return [*lines, "no problems found"]
