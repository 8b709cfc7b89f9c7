"""Which layers are MoE layers: every form places them, and every rule is said."""

from pathlib import Path

import pytest
from tiny_model import tiny_recipe

from moe_train.config.check import problems
from moe_train.config.load import load_recipe, to_yaml
from moe_train.config.notes import notes
from moe_train.config.resolve import spec_of
from moe_train.errors import RecipeError
from moe_train.show import show

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
    assert spec_of(recipe).moe_layers == layers


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (("moe.first=-1",), "moe.first=-1: must be at least 0; set moe.first=0 or more."),
        (("moe.first=2",), "moe.first=2: is not among the layers 0 to 1, so no layer would be an MoE layer"),
        (
            ("moe.first=1", "moe.dense_first=1"),
            "moe.dense_first=1: cannot be combined with moe.first=1, as both say where the MoE layers begin; "
            "set moe.dense_first=0",
        ),
        (
            ("moe.every=null",),
            "moe.every=null: must be set if moe.layers is null too, or the MoE layers are unknown",
        ),
        (("moe.layers=[]",), "moe.layers=[]: names no layer; set moe.every=0 for a dense model."),
        (
            ("moe.layers=[1]", "moe.every=2"),
            "moe.layers=[1]: cannot be combined with moe.every=2, as both place the MoE layers; "
            "set one of the two to null.",
        ),
        (
            ("moe.layers=[1,0,1]",),
            "moe.layers=[1, 0, 1]: must name each layer once, in ascending order; write moe.layers=[0, 1].",
        ),
        (("moe.layers=[1,2]",), "names layer 2, but the model has the layers 0 to 1, counted from 0; choose"),
        (("moe.layers=[-1,1]",), "names layer -1, but the model has the layers 0 to 1"),
        (
            (*SPANS, "moe.layers=[7]"),
            "names layer 7, but the model has the layers 0 to 2 in the encoder and 3 to 6 in the decoder",
        ),
        (
            ("moe.layers=[1]", "moe.first=1"),
            "moe.first=1: applies only with moe.every, but here moe.layers lists",
        ),
        (("moe.layers=[1]", "moe.dense_first=1"), "moe.dense_first=1: applies only with moe.every"),
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
    assert spec_of(load_recipe(listed)).moe_layers == [1, 2]
    assert spec_of(load_recipe(again)).moe_layers == [2, 5]
    assert spec_of(load_recipe(listed, ["moe.every=0"])).moe_layers == []
    assert spec_of(load_recipe(base, ["moe.layers=[5]"])).moe_layers == [5]


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
        ("deepspeed_moe/1.3b_pr", list(range(1, 24, 2))),
        ("soft/tiny", [2, 3]),
        ("deepseek/16b", list(range(1, 28))),
    ],
)
def test_a_recipe_places_its_layers_as_its_paper_does(name, layers):
    assert spec_of(load_recipe(RECIPES / f"{name}.yaml")).moe_layers == layers


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (("moe.num_experts=0",), "moe.num_experts=0: must be at least 1; set moe.num_experts=1 or more."),
        (("moe.num_experts=[4,0]",), "moe.num_experts=[4, 0]: must be at least 1"),
        (
            ("moe.num_experts=[4,8,8]",),
            "moe.num_experts=[4, 8, 8]: has 3 numbers, but the model has 2 MoE layers: 0, 1 (counted from 0); give",
        ),
        (("moe.num_experts=[]",), "moe.num_experts=[]: has 0 numbers, but the model has 2 MoE layers"),
        (
            ("moe.num_experts=[4]", "moe.layers=[1]", "parallel.expert=3"),
            "parallel.expert=3: must divide each of moe.num_experts=[4]; choose one of 1, 2, 4.",
        ),
        (
            ("moe.num_experts=[8,6]", "parallel.expert=4"),
            "parallel.expert=4: must divide each of moe.num_experts=[8, 6]; choose one of 1, 2.",
        ),
        (
            ("moe.num_experts=[8,2]", "moe.router.kind=top_k", "moe.router.k=4"),
            "moe.router.k=4: must be between 1 and moe.num_experts=2",
        ),
        (("moe.num_experts=[1,8]", "moe.router.kind=gshard"), "moe.num_experts=1: must be at least 2 with"),
    ],
)
def test_a_rule_on_the_experts_of_each_layer_is_said(overrides, sentence):
    found = [str(problem) for problem in problems(tiny_recipe(*overrides))]
    assert any(sentence in problem for problem in found), found


@pytest.mark.parametrize("value", ["abc", "null", "4.5", "true", "[4,a]", "[[4]]", "{a: 1}", "${name}"])
def test_what_is_no_number_of_experts_is_said(value):
    with pytest.raises(RecipeError, match="must be a whole number or a list of whole numbers, such as"):
        tiny_recipe(f"moe.num_experts={value}")


def test_a_number_of_experts_may_be_another_keys():
    assert tiny_recipe("moe.num_experts=[4,'${parallel.expert}']").moe.num_experts == [4, 1]


def test_the_numbers_of_experts_go_to_the_layers_of_both_stacks_in_order():
    recipe = tiny_recipe(*SPANS, "moe.layers=[2,3,6]", "moe.num_experts=[2,4,8]")
    encoder, decoder = spec_of(recipe).stacks
    assert [layer and layer.num_experts for layer in encoder.layers] == [None, None, 2]
    assert [layer and layer.num_experts for layer in decoder.layers] == [4, None, None, 8]
    assert spec_of(recipe).num_experts == [2, 4, 8]


def test_a_note_says_which_layers_it_is_about():
    recipe = load_recipe(RECIPES / "switch" / "tiny.yaml", ["moe.num_experts=[8,64]"])
    [note] = notes(recipe)
    assert "in effect (4 slots an expert) in layers of 64 experts in the decoder" in note


def test_two_passes_differ_if_any_layer_draws():
    consistent = ("moe.router.kind=thor", "objective.kind=consistency", "moe.capacity_factor=null")
    consistent += ("moe.eval_capacity_factor=null",)
    assert problems(tiny_recipe(*consistent, "moe.num_experts=[1,2]")) == []
    [problem] = problems(tiny_recipe(*consistent, "moe.num_experts=[1,1]"))
    assert "with moe.num_experts=[1, 1] nothing is random" in str(problem)


def test_show_says_which_experts_of_which_layers_a_worker_holds(capsys):
    shown = ["moe.num_experts=[8,16]", "parallel.expert=4"]
    assert show(str(RECIPES / "switch" / "tiny.yaml"), shown, 4, as_json=False) == 0
    shown_lines = capsys.readouterr().out.splitlines()
    assert "layout: 4 workers; MoE layers 1, 3 (counted from 0) of 8, 16 experts" in shown_lines
    assert (
        "  worker 1: experts 2 to 3 of each MoE layer of 8 and 4 to 7 of each MoE layer of 16" in shown_lines
    )
