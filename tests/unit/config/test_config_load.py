"""Reading recipes: bases, overrides, kinds, and the sentence for each way to get it wrong."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from moe_train.config.fields import choices, known_fields
from moe_train.config.find import find_recipe
from moe_train.config.kinds.optim import SGDConfig
from moe_train.config.kinds.router.top_k import TopKRouterConfig
from moe_train.config.load import load_recipe, to_dict, to_yaml
from moe_train.config.registry import REGISTRY
from moe_train.config.schema import Recipe
from moe_train.errors import RecipeError

RECIPES = Path(__file__).parents[3] / "recipes"


@pytest.fixture
def write(tmp_path):
    def to(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return to


def refusal(recipe, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe, overrides)
    return str(caught.value)


def test_a_base_comes_first_then_the_file_then_the_overrides(write):
    write("far.yaml", "steps: 1\nseed: 1\nlog_every: 1\nmodel: {d_model: 64, num_layers: 3}")
    write("sub/near.yaml", "_base: ../far.yaml\nseed: 2\nlog_every: 2")
    recipe = load_recipe(write("sub/leaf.yaml", "_base: near.yaml\nlog_every: 3"), ["model.num_layers=7"])
    assert (recipe.steps, recipe.seed, recipe.log_every) == (1, 2, 3)
    assert (recipe.model.d_model, recipe.model.num_layers) == (64, 7)


def test_of_several_bases_the_later_one_wins(write):
    write("a.yaml", "seed: 1\nsteps: 1")
    write("b.yaml", "seed: 2")
    recipe = load_recipe(write("leaf.yaml", "_base: [a.yaml, b.yaml]"))
    assert (recipe.seed, recipe.steps) == (2, 1)


def test_a_recipe_without_a_name_is_named_after_its_file(write):
    assert load_recipe(write("switch/tiny.yaml", "steps: 1")).name == "switch-tiny"
    assert load_recipe(write("switch/tiny.yaml", "steps: 1\nname: mine")).name == "mine"


def test_a_changed_kind_drops_the_options_of_the_old_one(write):
    write("base.yaml", "optim: {kind: adamw, lr: 0.5, beta1: 0.5, schedule: {kind: linear}}")
    recipe = load_recipe(write("leaf.yaml", "_base: base.yaml\noptim: {kind: sgd, momentum: 0.5}"))
    assert isinstance(recipe.optim, SGDConfig)
    assert (recipe.optim.lr, recipe.optim.momentum, recipe.optim.schedule.kind) == (1e-3, 0.5, "cosine")


def test_the_same_kind_again_keeps_the_options(write):
    write("base.yaml", "optim: {kind: sgd, lr: 0.5}")
    assert (
        load_recipe(write("leaf.yaml", "_base: base.yaml\noptim: {kind: sgd, momentum: 0.5}")).optim.lr == 0.5
    )


def test_an_override_can_change_a_kind_and_set_its_options(write):
    router = load_recipe(
        write("r.yaml", "moe: {router: {jitter: 0.5}}"), ["moe.router.kind=top_k", "moe.router.k=4"]
    )
    assert router.moe.router == TopKRouterConfig(k=4)


def test_what_is_written_out_reads_back_the_same(write):
    overrides = ["optim.kind=sgd", "moe.router.kind=top_k", "optim.lr=0.1", "moe.capacity_factor=null"]
    recipe = load_recipe(write("r.yaml", "name: x"), overrides)
    again = load_recipe(write("again.yaml", to_yaml(recipe)))
    assert again == recipe
    assert json.loads(json.dumps(to_dict(recipe)))["optim"]["momentum"] == 0.0


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("optim.lrr=3", "optim.lrr: there is no such key in a recipe; did you mean optim.lr?"),
        ("lr=3", "lr: there is no such key in a recipe; did you mean optim.lr?"),
        (
            "moe.capcity_factor=2",
            "moe.capcity_factor: there is no such key in a recipe; did you mean moe.capacity_factor?",
        ),
        ("zzz.b=1", "zzz: there is no such key in a recipe; `moe-train show` lists every key of a recipe"),
        ("steps=abc", "steps=abc: must be a whole number; its default is 1000"),
        ("steps=1.5", "steps=1.5: must be a whole number; its default is 1000"),
        ("steps=null", "steps=null: must be a whole number; its default is 1000"),
        ("steps.x=3", "steps={x: 3}: must be a whole number; its default is 1000"),
        ("optim.lr=fast", "optim.lr=fast: must be a number; its default is 0.001"),
        ("optim.clip=x", "optim.clip=x: must be a number or null; its default is 1.0"),
        ("job.threads=two", "job.threads=two: must be a whole number or null; its default is null"),
        ("model.tied_embeddings=hm", "model.tied_embeddings=hm: must be true or false; its default is true"),
        ("precision=fp8", "precision=fp8: must be one of fp32, bf16; its default is fp32"),
        (
            "monitor.wandb.tags=a",
            "monitor.wandb.tags=a: must be a list of text, such as [a, b]; its default is []",
        ),
        (
            "monitor.wandb.tags={a: 1}",
            "monitor.wandb.tags={a: 1}: must be a list of text, such as [a, b]; its default is []",
        ),
        ("parallel=4", "parallel=4: is a section, not a value; set its keys, parallel.data, parallel.tensor"),
        (
            "optim=adam",
            "optim=adam: is a section, not a value; choose with optim.kind, one of adamw, adafactor",
        ),
        ("optim.kind=adam", "optim.kind=adam: is not a known kind; choose one of adamw, adafactor"),
        ("optim.kind=[a]", "optim.kind=[a]: is not a known kind; choose one of adamw, adafactor"),
        ("moe.router.kind=null", "moe.router.kind=null: is not a known kind; choose one of switch, top_k"),
        (
            "optim.momentum=1",
            "optim.momentum: there is no such key in a recipe",
        ),  # sgd's, and the kind is adamw
        ("steps=${nope}", "steps=${nope}: cannot be resolved to a whole number"),
        ("steps", "override=steps: must have the form key=value"),
        ("=3", "override==3: must have the form key=value"),
    ],
)
def test_a_wrong_key_or_value_is_said_in_a_sentence(write, override, sentence):
    said = refusal(write("r.yaml", "seed: 1"), override)
    assert sentence in said
    for jargon in ("full_key", "object_type", "Merge error", "DictConfig", "ListConfig"):
        assert jargon not in said


def test_a_wrong_value_in_the_file_is_said_like_an_override(write):
    assert refusal(write("r.yaml", "model: {d_model: wide}")) == (
        "model.d_model=wide: must be a whole number; its default is 256"
    )


def test_a_recipe_cannot_be_its_own_base(write):
    write("a.yaml", "_base: b.yaml")
    assert "a recipe cannot be its own base" in refusal(write("b.yaml", "_base: a.yaml"))
    assert "a recipe cannot be its own base" in refusal(write("c.yaml", "_base: c.yaml"))


def test_a_missing_base_is_named(write):
    said = refusal(write("a.yaml", "_base: gone.yaml"))
    assert "_base=gone.yaml" in said
    assert "a.yaml" in said


def test_a_missing_recipe_comes_with_a_suggestion():
    assert refusal("recipes/switch/tniy.yaml").endswith("did you mean recipes/switch/tiny.yaml?")
    assert "recipes/ has one folder per system: artetxe, base, " in refusal("qqqqqqqqqq")
    assert "one folder per system" in refusal("nowhere.yaml")  # an ending alone is no likeness


def test_a_section_in_a_value_s_place_names_keys_only(write):
    said = refusal(write("r.yaml", "seed: 1"), "moe=3")
    assert "moe.router.kind" in said
    assert "sees_later_tokens" not in said  # a constant of the router's dataclass, which no recipe may set


def test_shipped_recipes_are_found_by_name_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("recipes/switch/tiny.yaml", "switch/tiny.yaml", "switch/tiny"):
        assert find_recipe(name) == RECIPES / "switch" / "tiny.yaml"


@pytest.mark.parametrize("text", ["a: [1", "a: b: c", "\x00"])
def test_a_file_that_is_not_yaml_is_said_to_be_so(write, text):
    refused = refusal(write("r.yaml", text))
    assert "is not valid YAML (" in refused
    assert "<" not in refused  # PyYAML's "<unicode string>" is not a file of the user's


def test_a_mistake_in_yaml_is_said_with_its_line(write):
    assert "duplicate key steps at line 2, column 1)" in refusal(write("r.yaml", "steps: 3\nsteps: 4\n"))


def test_a_file_of_bytes_is_no_recipe(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_bytes(b"name: \xff\xfe\x81")
    assert "is not valid YAML (not UTF-8 text from byte 6 on); save it as UTF-8" in refusal(path)


def test_a_list_is_no_recipe(write):
    assert "must be a mapping of keys to values, not a list" in refusal(write("r.yaml", "- 1\n- 2"))


@pytest.mark.parametrize("content", ["", "# all of it\n# is comments\n", "{}\n", "---\n"])
def test_an_empty_file_is_no_recipe(write, content):
    assert "r.yaml: is empty; write at least one key" in refusal(write("r.yaml", content))
    assert "r.yaml: is empty" in refusal(write("based.yaml", "_base: r.yaml\nsteps: 3\n"))


def test_reading_a_recipe_does_not_import_torch():
    code = (
        "import sys\n"
        "from moe_train.config.check import problems\n"
        "from moe_train.config.load import load_recipe\n"
        "problems(load_recipe('switch/tiny'))\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=RECIPES.parent, env=environment()).returncode == 0


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": f"{RECIPES.parent}:{RECIPES.parent / 'cluster'}"}


@pytest.mark.parametrize("name", ["", ".", "recipes"])
def test_a_folder_is_no_recipe(name):
    with pytest.raises(RecipeError, match=r"is a folder; name one YAML file in it"):
        load_recipe(name)


def test_a_name_that_no_file_system_takes_is_a_missing_recipe():
    with pytest.raises(RecipeError, match=r"there is no such file"):
        load_recipe("x" * 5000)


def test_an_override_that_is_no_yaml_is_named_in_one_line():
    with pytest.raises(RecipeError) as refused:
        load_recipe("switch/tiny", ["steps=["])
    assert str(refused.value).startswith("override=steps=[: is not valid YAML (")
    assert "\n" not in str(refused.value)


def saved_before(recipe, lacking: str) -> str:
    """What a run saved of `recipe` when there was no such key of the router."""
    lines = to_yaml(recipe).splitlines(keepends=True)
    return "".join(line for line in lines if not line.strip().startswith(f"{lacking}:"))


@pytest.mark.parametrize("name", ["switch/tiny", "sparsely_gated/tiny", "deepseek/tiny"])
def test_a_run_that_was_saved_before_balance_had_a_place_goes_on_with_its_groups(write, name):
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    saved = write("recipe.yaml", saved_before(recipe, "balance_over"))
    assert recipe.moe.router.balance_over != "group"
    assert load_recipe(saved).moe.router.balance_over == "group"
    assert load_recipe(saved, ["moe.router.balance_over=batch"]).moe.router.balance_over == "batch"
    again = write("again.yaml", to_yaml(recipe))
    assert load_recipe(again) == recipe


def test_a_router_without_a_balance_loss_has_none_in_what_a_run_saved(write):
    recipe = load_recipe(RECIPES / "hash" / "tiny.yaml")
    assert load_recipe(write("recipe.yaml", to_yaml(recipe))) == recipe


@pytest.mark.parametrize(
    ("overrides", "hint"),
    [
        (
            ["moe.router.kind=gshard", "moe.router.k=4"],
            "moe.router.k: there is no such key in a recipe with moe.router.kind=gshard; it belongs to "
            "moe.router.kind=top_k, noisy_top_k",
        ),
        (
            ["optim.schedule.kind=constant", "optim.schedule.final_fraction=0"],
            "optim.schedule.kind=constant; it belongs to optim.schedule.kind=cosine, linear",
        ),
        (["optim.momentum=1"], "with optim.kind=adamw; it belongs to optim.kind=sgd"),
        (["moe.k=4"], "did you mean moe.router.k, a key of moe.router.kind=top_k"),
        (["moe.lr=4"], "did you mean optim.lr?"),
        (["model.num_experts=4"], "did you mean moe.num_experts?"),
        (["stpes=4"], "did you mean steps?"),
        (["optm={lr: 1}"], "did you mean optim?"),
        (["moe.router.kind=topk"], "; did you mean top_k?"),
        (["moe.router.kind=TopK"], "; did you mean top_k?"),
        (["moe.router=topk"], "one of switch, top_k"),
        (["optim.kind=adam"], "; did you mean adamw?"),
        (["model.activation=SwiGLU"], "; did you mean swiglu?"),
        (["moe.activation=swigly"], "; did you mean swiglu?"),
        (["monitor.wandb.mode=ofline"], "; did you mean offline?"),
        (["precision=bfloat16"], "; did you mean bf16?"),
    ],
)
def test_a_wrong_word_comes_with_what_it_may_have_meant(write, overrides, hint):
    assert hint in refusal(write("r.yaml", "seed: 1"), *overrides)


def test_every_choice_is_suggested_for_a_slip_of_its_own(write):
    path, values = write("r.yaml", "seed: 1"), known_fields(Recipe, {})
    slips = [(place, "kind", kind) for place, known in REGISTRY.items() for kind in known]
    slips += [(*key.rpartition(".")[::2], choice) for key in values for choice in choices(values[key])]
    for section, leaf, choice in slips:
        key = f"{section}.{leaf}" if section else leaf
        said = refusal(path, f"{key}={choice}x")
        assert said.endswith(f"did you mean {choice}?"), said


def test_all_keys_that_are_wrong_are_named_at_once(write):
    said = refusal(write("r.yaml", "stepz: 1\nmodel: {dmodel: 3, num_heads: [1]}"))
    assert [line.partition(":")[0] for line in said.splitlines()] == [
        "stepz",
        "model.dmodel",
        "model.num_heads=[1]",
    ]


def test_a_missing_file_is_answered_with_one_beside_it(tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text("seed: 1")
    monkeypatch.chdir(tmp_path)
    assert refusal("mine.yml").endswith("there is no such file; did you mean mine.yaml?")
    assert refusal(tmp_path / "mien.yaml").endswith(f"did you mean {tmp_path}/mine.yaml?")
    assert refusal(tmp_path / "mine.json").endswith(f"did you mean {tmp_path}/mine.yaml?")
    assert find_recipe("mine") == Path("mine.yaml")
    assert "did you mean" not in refusal("gone.yaml")  # an ending alone is no likeness


def test_a_folder_is_answered_with_the_files_in_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("switch", "recipes/switch", "switch/"):
        said = refusal(name)
        assert (
            "is a folder of recipes; name one file in it, such as recipes/switch/tiny.yaml; it has base.yaml"
            in said
        )
        assert "xxl.yaml" in said
    (tmp_path / "mine").mkdir()
    assert refusal("mine").endswith("is a folder; name one YAML file in it; it has none")
    (tmp_path / "mine/a").mkdir()
    (tmp_path / "mine/a/tiny.yaml").write_text("seed: 1")
    assert refusal("mine").endswith("name one YAML file in it or below it, such as mine/a/tiny.yaml")
    (tmp_path / "mine/a.yaml").write_text("seed: 1")
    assert refusal("mine").endswith("is a folder; name one YAML file in it, such as mine/a.yaml")


@pytest.mark.parametrize("base", ["_base/tiny.yaml", "recipes/_base/tiny.yaml", "_base/tiny", "switch/tiny"])
def test_a_base_that_comes_with_moe_train_is_found_by_name_from_any_folder(write, base, monkeypatch):
    assert load_recipe(write("far/away/r.yaml", f"_base: {base}\nseed: 3")).model.d_model == 128
    monkeypatch.setattr("moe_train.config.find.INSTALLED", RECIPES)  # as in an installed package
    monkeypatch.setattr("moe_train.config.find.SOURCE_TREE", Path("gone"))
    assert load_recipe(write("far/away/r.yaml", f"_base: [{base}]")).model.d_model == 128


def test_a_base_beside_the_recipe_goes_before_one_of_the_same_name(write):
    write("_base/tiny.yaml", "model: {d_model: 64}")
    assert load_recipe(write("r.yaml", "_base: _base/tiny.yaml")).model.d_model == 64


@pytest.mark.parametrize(
    ("base", "hint"),
    [
        ("../_base/tiny.yaml", "did you mean _base: _base/tiny.yaml, which comes with moe-train?"),
        ("farr.yaml", "did you mean .*/far.yaml?"),
        ("gone", "correct the path, which is relative to that file"),
        ("tiny.yaml", "or name a recipe that comes with moe-train, such as _base/tiny.yaml"),
    ],
)
def test_a_base_that_is_not_there_is_answered_with_one_that_is(write, base, hint):
    write("far.yaml", "seed: 1")
    assert re.search(hint, refusal(write("r.yaml", f"_base: {base}")))


@pytest.mark.parametrize("base", ["{a: b}", "[[a]]", "[null]"])
def test_a_base_is_a_file_or_a_list_of_files(write, base):
    assert "must be a file or a list of files" in refusal(write("r.yaml", f"_base: {base}"))


def test_a_shipped_recipe_works_where_it_is_copied_to(tmp_path):
    for path in RECIPES.glob("[!_]*/*.yaml"):
        copy = tmp_path / path.parent.name / path.name
        copy.parent.mkdir(exist_ok=True)
        copy.write_text(path.read_text())
    for copy in tmp_path.glob("*/*.yaml"):
        shipped = RECIPES / copy.parent.name / copy.name
        assert load_recipe(copy) == load_recipe(shipped)
