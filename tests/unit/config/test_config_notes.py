"""Surprises of sound recipes, and none where there is none."""

from pathlib import Path

import pytest

from moe_train.config.kinds.router.top_k import TopKRouterConfig
from moe_train.config.load import load_recipe
from moe_train.config.notes import limits, notes
from moe_train.config.schema import Recipe

RECIPES = Path(__file__).parents[3] / "recipes"


def top_2() -> Recipe:
    recipe = Recipe()  # 128 tokens in a group, 8 experts: 32 assignments of each at balance
    recipe.moe.router = TopKRouterConfig(k=2)
    return recipe


def test_the_default_recipe_has_no_surprise():
    assert notes(Recipe()) == []


def test_two_choices_under_the_mesh_convention_are_dropped_even_at_balance():
    dropped, order = notes(top_2())  # factors 1.25 and 2: only the first is below 2
    assert dropped == (
        "moe.capacity_factor=1.25: moe.capacity_convention=mesh does not count choices, and a token has 2, so about "
        "38% of the assignments are dropped even at perfect balance; use moe.capacity_factor=2 or more, or "
        "moe.capacity_convention=deepspeed"
    )
    assert order.startswith(
        "moe.capacity_factor=1.25 and moe.eval_capacity_factor=2: with 2 choices a token's second choice can lose"
    )


@pytest.mark.parametrize(("field", "value"), [("capacity_convention", "deepspeed"), ("min_capacity", 32)])
def test_what_makes_room_for_all_choices_silences_the_note_on_dropping(field, value):
    recipe = top_2()
    setattr(recipe.moe, field, value)
    assert all("perfect balance" not in note for note in notes(recipe))


def test_one_choice_below_its_share_is_dropped_as_well():
    recipe = Recipe()
    recipe.moe.capacity_factor = 0.75
    [note] = notes(recipe)
    assert "a token has 1, so about 25% of the assignments" in note


def test_a_limit_in_validation_alone_is_told():
    recipe = Recipe()
    recipe.moe.capacity_factor = None
    assert notes(recipe) == [
        "moe.eval_capacity_factor=2: validation drops what is beyond it, while training, with "
        "moe.capacity_factor=null, drops nothing; null is dropless in both"
    ]
    recipe.moe.eval_capacity_factor = None
    assert notes(recipe) == []


def test_without_a_limit_or_without_experts_there_is_nothing_to_say():
    recipe = top_2()
    recipe.moe.capacity_factor = recipe.moe.eval_capacity_factor = None
    assert notes(recipe) == []
    recipe = top_2()
    recipe.moe.every = 0
    assert notes(recipe) == []


def test_slots_that_the_least_number_decides_are_told_with_the_factor_they_make():
    recipe = Recipe()
    recipe.moe.num_experts = 64  # 128 tokens in a group: floor(2.5) and floor(4) slots
    assert notes(recipe) == [
        "moe.capacity_factor=1.25 is 2 in effect (4 slots an expert) in the decoder: of a group of 128 tokens an "
        "expert takes a whole number, and at least moe.min_capacity=4; a larger moe.group_sequences or a smaller "
        "moe.min_capacity comes nearer"
    ]


@pytest.mark.parametrize(
    ("changes", "effective"),
    [
        ({"min_capacity": 1}, None),  # 2 slots are a factor of 1.0, which is not far
        ({"group_sequences": 4}, None),  # 10 slots
        (
            {"capacity_convention": "deepspeed", "min_capacity": 1, "num_experts": 256},
            "2 in effect (1 slot an",
        ),
        ({"min_capacity": 0, "num_experts": 256}, "0 in effect (0 slots an"),
        ({"capacity_factor": 100.0}, None),  # all tokens: there are no more
    ],
)
def test_a_factor_that_is_nearly_kept_is_not_worth_a_note(changes, effective):
    recipe = Recipe()
    recipe.moe.num_experts = 64
    recipe.moe.eval_capacity_factor = None
    for field, value in changes.items():
        setattr(recipe.moe, field, value)
    told = [note for note in notes(recipe) if "in effect" in note]
    assert bool(told) == (effective is not None)
    assert all(effective in note for note in told)


def test_each_stack_is_told_of_the_slots_in_its_own_groups():
    recipe = load_recipe(RECIPES / "switch" / "c.yaml")
    assert [note.partition(" (")[0] for note in notes(recipe)] == [
        "moe.capacity_factor=1 is 2 in effect",
        "moe.capacity_factor=1 is 8.98 in effect",
    ]


def test_a_pass_that_counts_loads_before_the_update_is_told():
    recipe = Recipe()
    recipe.data.micro_batch = 8  # of 32
    (note,) = notes(recipe)
    assert note.startswith(
        "data.micro_batch=8 with moe.router.balance_over=batch: where a worker has more than one"
    )
    assert "(fewer than 4 workers)" in note
    recipe.parallel.data = 4
    assert notes(recipe) == []
    recipe.parallel.data = 2
    assert len(notes(recipe)) == 1
    recipe.moe.router.balance_coefficient = 0
    (note,) = notes(recipe)
    assert note.startswith("moe.router.balance_coefficient=0: nothing keeps the loads of the experts even")


def test_a_router_that_begins_certain_is_told():
    recipe = Recipe()
    recipe.moe.router.init_scale = 10.0
    (note,) = notes(recipe)
    assert note.startswith("moe.router.init_scale=10: the router is certain before")
    recipe.moe.router.init_scale = 1.0
    assert notes(recipe) == []
    recipe.moe.router.balance_coefficient, recipe.moe.router.balance_over = 0.01, "group"
    assert notes(recipe) == []


def test_slots_of_a_group_and_what_they_drop_are_told():
    training, validation = limits(Recipe())  # 128 tokens, 8 experts
    assert training == (
        "moe.capacity_factor=1.25: 20 slots an expert in each group of 128 tokens of the decoder, and 16 assignments "
        "at even loads; a CV of 0.3 in the group drops 3.4% of them, chance alone (a CV of 0.23) 1.7%"
    )
    assert validation.startswith("moe.eval_capacity_factor=2: 32 slots an expert")
    recipe = Recipe()
    recipe.moe.router.reroutes = 3  # to the next best expert that has room
    assert "in the group sends on 3.4% of them" in limits(recipe)[0]
    recipe = top_2()
    assert "and 32 assignments at even loads" in limits(recipe)[0]
    recipe.moe.num_experts = [4, 8]
    assert [note.count("in layers of 4 experts") for note in limits(recipe)] == [1, 1, 0, 0]
    recipe.moe.capacity_factor = recipe.moe.eval_capacity_factor = None
    assert limits(recipe) == []


def test_a_dense_model_has_no_limits():
    recipe = Recipe()
    recipe.moe.every = 0
    assert limits(recipe) == []
