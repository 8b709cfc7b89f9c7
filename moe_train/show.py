"""`moe-train show`: a recipe before it runs - resolved, counted, laid out, and with every problem it has.

Answers without importing torch.
"""

import json

from moe_cluster.contract import DONE, USAGE
from moe_train.config.check import problems
from moe_train.config.load import load_recipe, to_dict, to_yaml
from moe_train.config.notes import limits, notes
from moe_train.config.schema import Recipe, experts_of_layers, moe_layers
from moe_train.data.corpora.there import require_text
from moe_train.errors import DataError
from moe_train.model.count import ModelCount, count

SHOWN_WORKERS = 16
"""Of a larger run the first workers are listed; all others follow the same rule."""


def show(recipe_name: str, overrides: list[str], workers: int | None, as_json: bool) -> int:
    """Print the recipe; returns USAGE if it has problems. Raises RecipeError if it cannot be read at all."""
    recipe = load_recipe(recipe_name, overrides)
    counted = count(recipe)
    found = [str(problem) for problem in problems(recipe, workers)]
    if as_json:
        content = {
            "recipe": to_dict(recipe),
            "total_parameters": counted.total_parameters,
            "active_parameters": counted.active_parameters,
            "flops_per_token": counted.flops_per_token,
            "problems": found,
            "notes": [] if found else _noted(recipe),
        }
        print(json.dumps(content, indent=1))
    else:
        print(to_yaml(recipe))
        said = [
            *_model(counted),
            "",
            *_layout(recipe, workers),
            "",
            *(_problems(found) if found else [*_limits(recipe), *_notes(recipe)]),
        ]
        print("\n".join(said))
    return USAGE if found else DONE


def _model(counted: ModelCount) -> list[str]:
    parts = [f"  {name:<20}{number:>20,}" for name, number in counted.parts.items() if number]
    return [
        f"{'total parameters':<22}{counted.total_parameters:>20,}",
        *parts,
        f"{'active parameters':<22}{counted.active_parameters:>20,}",
        f"{'FLOPs per token':<22}{counted.flops_per_token:>20,}  (forward and backward)",
    ]


def _layout(recipe: Recipe, workers: int | None) -> list[str]:
    expert, numbers = recipe.parallel.expert, experts_of_layers(recipe)
    data = workers or recipe.parallel.data or max(expert, 1)
    layers = moe_layers(recipe)
    if not layers:
        return [f"layout: {data} worker(s), no MoE layer"]
    having = f" of {', '.join(map(str, numbers))} experts" if len(set(numbers)) > 1 else ""
    lines = [f"layout: {data} worker(s); MoE layers {', '.join(map(str, layers))} (counted from 0){having}"]
    if expert < 1 or data % expert or any(number % expert for number in numbers):
        return lines
    copy = f", shared out among {data // expert} workers" if data > expert else ""
    for rank in range(min(data, SHOWN_WORKERS)):
        lines.append(f"  worker {rank}: experts {_held(rank % expert, expert, numbers)}{copy}")
    if data > SHOWN_WORKERS:
        lines.append(f"  and so on to worker {data - 1}")
    return lines


def _held(share: int, expert: int, numbers: list[int]) -> str:
    """The experts of one of `expert` shares: "0 to 3 of each MoE layer", or of each that has equally many."""
    parts = []
    for number in dict.fromkeys(numbers):
        size = number // expert
        having = f" of {number}" if len(set(numbers)) > 1 else ""
        parts.append(f"{share * size} to {share * size + size - 1} of each MoE layer{having}")
    return " and ".join(parts)


def _problems(found: list[str]) -> list[str]:
    return ["problems:", *(f"  {sentence}" for sentence in found)]


def _noted(recipe: Recipe) -> list[str]:
    """All notes; text that is not on this machine is one of them and no problem, for a cluster may have it."""
    try:
        require_text(recipe.data.corpus)
    except DataError as error:
        return [*notes(recipe), str(error)]
    return notes(recipe)


def _limits(recipe: Recipe) -> list[str]:
    found = limits(recipe)
    return ["capacity:", *(f"  {sentence}" for sentence in found), ""] if found else []


def _notes(recipe: Recipe) -> list[str]:
    found = _noted(recipe)
    said = ["notes:", *(f"  {sentence}" for sentence in found), ""] if found else []
    return [*said, "no problems found"]
