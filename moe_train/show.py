"""Runs `moe-train show`: prints a recipe before it runs, with its sizes, its layout and all its problems.

Imports no torch.
"""

import json

from moe_cluster.contract import DONE, USAGE
from moe_train.config.check import problems
from moe_train.config.layout import degree_problems, plan_of
from moe_train.config.load import load_recipe, to_dict, to_yaml
from moe_train.config.notes import limits, notes
from moe_train.config.resolve import spec_of
from moe_train.config.schema import Recipe
from moe_train.data.corpora.there import require_text
from moe_train.errors import DataError
from moe_train.model.count import ModelCount, count

SHOWN_WORKERS = 16
"""The number of workers that the layout lists; the others follow the same rule."""


def show(recipe_name: str, overrides: list[str], workers: int | None, as_json: bool) -> int:
    """Print the recipe; returns USAGE if it has problems. Raises RecipeError if it cannot be read at all."""
    recipe = load_recipe(recipe_name, overrides)
    counted = count(spec_of(recipe))
    flops = counted.flops_per_token(recipe.data.sequence_length, recipe.objective.num_passes)
    broken = problems(recipe, workers)
    errors = [str(problem) for problem in broken]
    # Degrees are among the problems only if no section has one.
    unfit = (*degree_problems(recipe.parallel, workers), *broken)
    has_layout = not any(problem.key.startswith("parallel.") for problem in unfit)
    if as_json:
        content = {
            "recipe": to_dict(recipe),
            "total_parameters": counted.total_parameters,
            "active_parameters": counted.active_parameters,
            "flops_per_token": flops,
            "problems": errors,
            "notes": [] if errors else _all_notes(recipe),
        }
        print(json.dumps(content, indent=1))
    else:
        print(to_yaml(recipe))
        lines = [
            *_model(counted, flops),
            "",
            *([*_layout(recipe, workers), ""] if has_layout else []),
            *(_problems(errors) if errors else [*_limits(recipe), *_notes(recipe)]),
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


def _layout(recipe: Recipe, workers: int | None) -> list[str]:
    spec = spec_of(recipe)
    layers, numbers = spec.moe_layers, spec.num_experts
    plan = plan_of(recipe.parallel, workers)
    data, expert = plan.workers, plan.expert
    if not layers:
        return [f"layout: {data} worker(s), no MoE layer"]
    sizes = f" of {', '.join(map(str, numbers))} experts" if len(set(numbers)) > 1 else ""
    lines = [f"layout: {data} worker(s); MoE layers {', '.join(map(str, layers))} (counted from 0){sizes}"]
    if any(number % expert for number in numbers):
        return lines
    shards = plan.replica_shards
    sharding = f", sharded over {shards} workers" if shards > 1 else ""
    for rank in range(min(data, SHOWN_WORKERS)):
        share, part = divmod(rank % plan.exchange, plan.expert_tensor)
        cut = f", part {part + 1} of {plan.expert_tensor} of each" if plan.expert_tensor > 1 else ""
        lines.append(f"  worker {rank}: experts {_experts_of(share, expert, numbers)}{cut}{sharding}")
    if data > SHOWN_WORKERS:
        lines.append(f"  and so on to worker {data - 1}")
    return lines


def _experts_of(share: int, expert: int, numbers: list[int]) -> str:
    """Describes one of `expert` equal shares of the experts: "0 to 3 of each MoE layer", or for each size of layer."""
    parts = []
    for number in dict.fromkeys(numbers):
        size = number // expert
        layer = f"MoE layer of {number}" if len(set(numbers)) > 1 else "MoE layer"
        parts.append(f"{share * size} to {share * size + size - 1} of each {layer}")
    return " and ".join(parts)


def _problems(errors: list[str]) -> list[str]:
    return ["problems:", *(f"  {sentence}" for sentence in errors)]


def _all_notes(recipe: Recipe) -> list[str]:
    """Returns all notes. Text that is missing on this machine is a note, not a problem: a cluster may have it."""
    try:
        require_text(recipe.data.corpus)
    except DataError as error:
        return [*notes(recipe), str(error)]
    return notes(recipe)


def _limits(recipe: Recipe) -> list[str]:
    sentences = limits(recipe)
    return ["capacity:", *(f"  {sentence}" for sentence in sentences), ""] if sentences else []


def _notes(recipe: Recipe) -> list[str]:
    sentences = _all_notes(recipe)
    lines = ["notes:", *(f"  {sentence}" for sentence in sentences), ""] if sentences else []
    return [*lines, "no problems found"]
