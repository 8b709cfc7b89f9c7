"""Every shipped recipe loads, has no problem, and says where it comes from."""

import math
from pathlib import Path

import pytest

from moe_train.config.check import problems
from moe_train.config.load import load_recipe
from moe_train.config.notes import notes
from moe_train.config.resolve import spec_of
from moe_train.model.count import count
from moe_train.show import show

RECIPES = Path(__file__).parents[2] / "recipes"
SHIPPED = sorted(path for path in RECIPES.glob("[!_]*/*.yaml"))
TINY = [path for path in SHIPPED if path.stem.startswith("tiny")]


def name_of(path: Path) -> str:
    return str(path.relative_to(RECIPES))


@pytest.mark.parametrize("path", SHIPPED, ids=name_of)
def test_a_shipped_recipe_has_no_problem(path):
    recipe = load_recipe(path)
    assert problems(recipe) == []
    assert recipe.paper


@pytest.mark.parametrize("path", SHIPPED, ids=name_of)
def test_a_shipped_recipe_can_be_shown(path, capsys):
    assert show(str(path), [], None, as_json=False) == 0
    assert "no problems found" in capsys.readouterr().out


@pytest.mark.parametrize("path", SHIPPED, ids=name_of)
def test_a_shipped_recipe_has_the_capacity_that_it_states(path):
    told = [note for note in notes(load_recipe(path)) if "in effect" in note]
    assert bool(told) == (name_of(path) == "switch/c.yaml")  # as in its authors' code: its README says why


@pytest.mark.parametrize("path", TINY, ids=name_of)
@pytest.mark.parametrize("workers", [1, 2, 4, 8])
def test_a_tiny_recipe_runs_on_any_small_number_of_workers(path, workers):
    recipe = load_recipe(path)
    assert problems(recipe, workers) == []
    assert recipe.data.global_batch % 8 == 0
    if numbers := spec_of(recipe).num_experts:
        degree = math.gcd(workers, *numbers)
        assert problems(load_recipe(path, [f"parallel.expert={degree}"]), workers) == []


def test_the_dense_recipe_has_the_active_flops_of_the_switch_recipe_but_for_its_router():
    recipes = [load_recipe(RECIPES / kind / "tiny.yaml") for kind in ("switch", "dense")]
    length = recipes[0].data.sequence_length
    switch, dense = (count(spec_of(recipe)) for recipe in recipes)
    assert switch.flops_per_token(length) - dense.flops_per_token(length) == 3 * 2 * switch.parts["router"]


def test_there_is_a_readme_beside_every_recipe():
    assert SHIPPED
    for path in SHIPPED:
        assert (path.parent / "README.md").is_file(), path
