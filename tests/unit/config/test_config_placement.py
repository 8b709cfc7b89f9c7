"""Which layers are MoE layers: every form places them, and every rule is said."""

from pathlib import Path

import pytest
from tiny_model import tiny_recipe

from moe_train.config.check import problems
from moe_train.config.load import load_recipe, to_yaml
from moe_train.config.schema import moe_layers
from moe_train.errors import RecipeError

RECIPES = Path(__file__).parents[3] / "recipes"
SIX = "model.num_layers=6"
SPANS = (
    "model.architecture=encoder_decoder",
    "objective.kind=span_corruption",
    "objective.sentinels=4",
    "model.num_encoder_layers=3",
    "model.num_layers=4",
)


@pytest.mark.parametrize(
    ("overrides", "layers"),
    [
        ((SIX, "moe.every=2"), [1, 3, 5]),
        ((SIX, "moe.every=2", "moe.first=0"), [0, 2, 4]),
        ((SIX, "moe.every=2", "moe.first=3"), [3, 5]),
        ((SIX, "moe.every=9", "moe.first=4"), [4]),
        ((SIX, "moe.every=1", "moe.first=4"), [4, 5]),
        ((SIX, "moe.every=1", "moe.dense_first=4"), [4, 5]),
        ((SIX, "moe.every=2", "moe.dense_first=2"), [3, 5]),
        ((SIX, "moe.layers=[0,4]"), [0, 4]),
        ((*SPANS, "moe.every=2", "moe.first=0"), [0, 2, 3, 5]),
        ((*SPANS, "moe.every=2", "moe.first=0", "moe.stacks=decoder"), [3, 5]),
        ((*SPANS, "moe.layers=[2,3,6]"), [2, 3, 6]),
    ],
)
def test_every_form_places_the_layers(overrides, layers):
    recipe = tiny_recipe(*overrides)
    assert problems(recipe) == []
    assert moe_layers(recipe) == layers


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (("moe.first=-1",), "moe.first=-1: must be at least 0; set moe.first=0 or more."),
        (("moe.first=2",), "moe.first=2: is not among the layers 0 to 1, so no layer would be an MoE layer"),
        (
            ("moe.first=1", "moe.dense_first=1"),
            "moe.dense_first=1: says where the MoE layers begin, and so does moe.first=1; set moe.dense_first=0",
        ),
        (
            ("moe.every=null",),
            "moe.every=null: leaves open which layers are MoE layers, since moe.layers is null too",
        ),
        (("moe.layers=[]",), "moe.layers=[]: names no layer; set moe.every=0 for a dense model."),
        (
            ("moe.layers=[1]", "moe.every=2"),
            "moe.layers=[1]: places the MoE layers, and so does moe.every=2; set one of the two to null.",
        ),
        (
            ("moe.layers=[1,0,1]",),
            "moe.layers=[1, 0, 1]: must name each layer once, in ascending order; write moe.layers=[0, 1].",
        ),
        (("moe.layers=[1,2]",), "names layer 2, and the model has the layers 0 to 1, counted from 0; choose"),
        (("moe.layers=[-1,1]",), "names layer -1, and the model has the layers 0 to 1"),
        (
            (*SPANS, "moe.layers=[7]"),
            "names layer 7, and the model has the layers 0 to 2 in the encoder and 3 to 6 in the decoder",
        ),
        (("moe.layers=[1]", "moe.first=1"), "moe.first=1: goes with moe.every, and here moe.layers lists"),
        (("moe.layers=[1]", "moe.dense_first=1"), "moe.dense_first=1: goes with moe.every"),
        (
            (*SPANS, "moe.layers=[1]", "moe.stacks=encoder"),
            "lists the MoE layers of all stacks; set moe.stacks=both",
        ),
    ],
)
def test_a_broken_rule_is_said(overrides, sentence):
    found = [str(problem) for problem in problems(tiny_recipe(*overrides))]
    assert any(sentence in problem for problem in found), found


@pytest.mark.parametrize("value", ["3", "[a]", "[[1]]", "[1.5]", "[true]", "{a: 1}"])
def test_what_is_no_list_of_whole_numbers_is_said(value):
    with pytest.raises(RecipeError, match="must be a list of whole numbers, such as \\[1, 3\\] or null"):
        tiny_recipe(f"moe.layers={value}")


def test_a_list_replaces_what_the_layers_below_it_say_and_the_other_way_round(tmp_path):
    base, listed, again = (tmp_path / name for name in ("base.yaml", "listed.yaml", "again.yaml"))
    base.write_text("model: {num_layers: 6}\nmoe: {every: 2, first: 0, dense_first: 1}")
    listed.write_text("_base: base.yaml\nmoe: {layers: [1, 2]}")
    again.write_text("_base: listed.yaml\nmoe: {every: 3}")
    assert problems(load_recipe(listed)) == problems(load_recipe(again)) == []
    assert moe_layers(load_recipe(listed)) == [1, 2]
    assert moe_layers(load_recipe(again)) == [2, 5]
    assert moe_layers(load_recipe(listed, ["moe.every=0"])) == []
    assert moe_layers(load_recipe(base, ["moe.layers=[5]"])) == [5]


@pytest.mark.parametrize("override", ["moe.layers=[0]", "moe.every=0", "moe.first=0"])
def test_a_resolved_recipe_reads_back_the_same(override, tmp_path):
    recipe = tiny_recipe(override)
    saved = tmp_path / "saved.yaml"
    saved.write_text(to_yaml(recipe))
    assert load_recipe(saved) == recipe


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("thor/tiny", [0, 2]),
        ("thor/tiny-translation", [0, 2]),
        ("thor/iwslt", list(range(0, 12, 2))),
        ("thor/wmt", list(range(0, 12, 2))),
        ("glam/tiny", [0, 2]),
        ("glam/64b_64e", list(range(0, 64, 2))),
        ("switch/tiny", [1, 3]),
        ("switch/base", list(range(1, 24, 2))),
        ("v_moe/h14_every2", list(range(1, 32, 2))),
        ("v_moe/h14_last5", [23, 25, 27, 29, 31]),
        ("base/44b", [12]),
        ("hash/1x64", [11]),
        ("soft/tiny", [2, 3]),
        ("deepseek/16b", list(range(1, 28))),
    ],
)
def test_a_recipe_places_its_layers_as_its_paper_does(name, layers):
    assert moe_layers(load_recipe(RECIPES / f"{name}.yaml")) == layers
