"""The list `guards`: each entry chooses its dataclass, keeps it through a saved recipe, and is named in errors."""

import pytest
from installed_package import install
from tiny_model import tiny_recipe

from moe_train.config.check import problems
from moe_train.config.kinds.guard.spike import SpikeGuardConfig
from moe_train.config.load import load_recipe, to_yaml
from moe_train.config.notes import notes
from moe_train.config.registry import GUARDS, implementation
from moe_train.errors import RecipeError

PACKAGE = """
    from dataclasses import dataclass
    from moe_train.config.kinds.guard.guard import GuardConfig
    from moe_train.config.registry import Kind

    @dataclass
    class CalmGuardConfig(GuardConfig):
        kind: str = "calm"
        patience: int = 3

    CALM = Kind(CalmGuardConfig, "calm_guard.code:Calm")
"""


@pytest.mark.parametrize("kind", list(GUARDS))
def test_every_kind_has_code_behind_it_and_knows_its_own_name(kind):
    assert callable(implementation("guards", kind))
    assert GUARDS[kind].config().kind == kind


def test_entries_are_read_saved_and_read_again(tmp_path):
    recipe = tiny_recipe("guards=[{kind: spike, window: 3, response: slow}, {kind: spike}]")
    assert recipe.guards == [SpikeGuardConfig(window=3, response="slow"), SpikeGuardConfig()]
    (tmp_path / "saved.yaml").write_text(to_yaml(recipe))
    assert load_recipe(tmp_path / "saved.yaml") == recipe
    assert tiny_recipe().guards == []


def test_a_list_replaces_that_of_the_base(tmp_path):
    (tmp_path / "base.yaml").write_text("guards: [{kind: spike, window: 3}, {kind: spike}]")
    (tmp_path / "r.yaml").write_text("_base: base.yaml\nguards: [{kind: spike, patience: 1}]")
    assert load_recipe(tmp_path / "r.yaml").guards == [SpikeGuardConfig(patience=1)]


@pytest.mark.parametrize(
    ("guards", "message"),
    [
        (
            "[{kind: spik}]",
            "guards[0].kind=spik: is not a known kind; choose one of spike; did you mean spike?",
        ),
        ("[{window: 3}]", "guards[0].kind=null: is not a known kind"),
        ("[spike]", "guards=[spike]: must be a list of sections, such as [{kind: spike}]; its default is []"),
        ("{kind: spike}", "guards={kind: spike}: must be a list of sections"),
        ("null", "guards=null: must be a list of sections"),
        ("[{kind: spike}, {kind: spike, windw: 3}]", "guards[1].windw: there is no such key in a recipe"),
        (
            "[{kind: spike, window: many}]",
            "guards[0].window=many: must be a whole number; its default is 200",
        ),
        ("[{kind: spike, response: warm}]", "guards[0].response=warm: must be one of warn, slow, roll_back"),
        ("[{kind: spike, window: '${name}'}]", "cannot be resolved"),
    ],
)
def test_an_entry_that_cannot_be_read_is_named(guards, message):
    with pytest.raises(RecipeError) as refusal:
        tiny_recipe(f"guards={guards}")
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("window: 1", "guards[1].window=1: must be at least 2; its default is 200."),
        ("patience: 0", "guards[1].patience=0: must be at least 1; its default is 3."),
        ("slow_steps: 0", "guards[1].slow_steps=0: must be at least 1; its default is 100."),
        ("margin: -1", "guards[1].margin=-1: must be at least 0; its default is 10."),
        ("threshold: 0", "guards[1].threshold=0.0: must be > 0; use 6."),
        ("threshold: nan", "guards[1].threshold=nan: must be a finite number; its default is 6.0."),
        ("lr_factor: 1", "guards[1].lr_factor=1.0: must be in [0, 1); use 0.5."),
        ("response: roll_back", "guards[1].response=roll_back: needs stability.rollback=true"),
    ],
)
def test_a_broken_rule_is_named_with_the_place_in_the_list(entry, message):
    (problem,) = problems(tiny_recipe(f"guards=[{{kind: spike}}, {{kind: spike, {entry}}}]"))
    assert str(problem).startswith(message)


def test_a_package_adds_a_kind(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    modules = {"calm_guard/__init__.py": PACKAGE, "calm_guard/code.py": "Calm = print"}
    install(tmp_path, modules, {"moe_train.guards": {"calm": "calm_guard:CALM"}}, name="calm-guard")
    recipe = tiny_recipe("guards=[{kind: spike}, {kind: calm, patience: 5}]")
    assert recipe.guards[1].patience == 5
    assert implementation("guards", "calm") is print
    assert (
        "guards[1].kind=calm: comes from the package calm-guard 1.0, which every worker must have"
        in notes(recipe)
    )
