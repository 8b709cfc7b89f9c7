"""A key that holds text takes the text as it was written, whatever YAML 1.1 would make of it."""

from pathlib import Path

import pytest

from moe_train.config.check import problems
from moe_train.config.fields import choices, in_words, known_fields
from moe_train.config.load import load_recipe, to_yaml
from moe_train.config.registry import REGISTRY
from moe_train.config.schema import Recipe
from moe_train.errors import RecipeError
from moe_train.jobs.sweep import combinations

RETYPED = [
    "007",
    "1234e56",
    "1e5",
    "12:30",
    "12:30:45.5",
    "on",
    "No",
    "true",
    "1_000",
    "0x1F",
    "0b11",
    "-0",
    "+1.50",
    ".5",
    ".inf",
    ".NaN",
    "2026-11-30",
    "2026-11-30 12:00:00",
    "=",
    "<<",
    "y",
]
A_FEW = ["007", "1e5", "12:30", "on"]
ONLY_IN_OVERRIDES = [
    "GLaM: scaling",
    "#1",
    "a #b",
    "*.txt",
    "&x",
    "!x",
    "@home",
    "%d",
    "- a",
    "? a",
    "|",
    ">",
]
"""What a YAML file gives a meaning of its own unless it is quoted."""


def every_kind() -> list[dict[str, str]]:
    """The kinds of each place, by turns: every one of them appears once, with the defaults of all others."""
    return [{place: kind} for place, known in REGISTRY.items() for kind in known]


def text_keys(is_list: bool) -> list[tuple[tuple[str, ...], str]]:
    """Overrides that choose the kinds, and the key, of every field that holds text (or a list of text)."""
    found = {}
    for chosen in every_kind():
        configs = {place: next(iter(known.values())).config for place, known in REGISTRY.items()}
        configs |= {place: REGISTRY[place][kind].config for place, kind in chosen.items()}
        overrides = tuple(f"{place}.kind={kind}" for place, kind in chosen.items())
        for key, declared in known_fields(Recipe, configs).items():
            if key in REGISTRY or key.endswith(".kind") or choices(declared):
                continue
            holds = "a list of text" if is_list else "text"
            if in_words(declared).startswith(holds):
                found.setdefault((key, configs.get(key.rpartition(".")[0])), (overrides, key))
    return list(found.values())


def value_of(recipe: Recipe, key: str):
    value = recipe
    for part in key.split("."):
        value = getattr(value, part)
    return value


def nested(key: str, value: str) -> str:
    """`a: {b: value}` of a.b."""
    first, *parts = key.split(".")
    for part in reversed(parts):
        value = f"{{{part}: {value}}}"
    return f"{first}: {value}"


@pytest.fixture
def write(tmp_path):
    """A file with `key: value` over a base that chooses the kinds."""

    def to(kinds: tuple[str, ...], key: str, value: str) -> Path:
        chosen = [nested(*override.split("=")) for override in kinds]
        (tmp_path / "kinds.yaml").write_text("\n".join(chosen))
        path = tmp_path / "written.yaml"
        path.write_text(f"_base: kinds.yaml\n{nested(key, value)}")
        return path

    return to


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("seed: 1\n")
    return path


def test_there_are_text_fields_of_several_kinds():
    keys = {key for _, key in text_keys(is_list=False)}
    assert {"name", "paper", "data.corpus.path", "data.corpus.split", "monitor.wandb.project"} <= keys
    assert {key for _, key in text_keys(is_list=True)} >= {"monitor.wandb.tags", "data.corpus.suffixes"}


@pytest.mark.parametrize(("kinds", "key"), text_keys(is_list=False))
def test_an_override_keeps_its_text(recipe, kinds, key):
    for text in A_FEW if kinds else [*RETYPED, *ONLY_IN_OVERRIDES]:
        assert value_of(load_recipe(recipe, [*kinds, f"{key}={text}"]), key) == text


@pytest.mark.parametrize(("kinds", "key"), text_keys(is_list=False))
def test_a_file_keeps_its_text(write, kinds, key):
    for text in A_FEW:
        assert value_of(load_recipe(write(kinds, key, text)), key) == text


@pytest.mark.parametrize(
    "text", [*RETYPED, *ONLY_IN_OVERRIDES, "null", "~", " a ", "", "a\nb", "'", '"', "ü", "[a]", "a: b\n"]
)
def test_the_recipe_that_a_run_keeps_reads_back_as_it_was(tmp_path, recipe, text):
    written = load_recipe(recipe)
    written.paper, written.data.corpus.path, written.monitor.wandb.tags = text, text, [text, text]
    path = tmp_path / "recipe.yaml"
    path.write_text(to_yaml(written))
    assert load_recipe(path) == written


@pytest.mark.parametrize(("kinds", "key"), text_keys(is_list=True))
def test_a_list_keeps_its_texts(recipe, write, kinds, key):
    written = f"[{', '.join(RETYPED)}]"
    assert value_of(load_recipe(recipe, [*kinds, f"{key}={written}"]), key) == RETYPED
    assert value_of(load_recipe(write(kinds, key, written)), key) == RETYPED


def test_a_sweep_keeps_the_text_of_its_values(recipe):
    runs = combinations(["name=007,12:30,on,it's,1e5"])
    assert [load_recipe(recipe, overrides).name for _, overrides in runs] == [
        "007",
        "12:30",
        "on",
        "it's",
        "1e5",
    ]
    assert runs[0][0] == "name=007"


def test_null_is_none_where_a_key_may_have_none_and_refused_elsewhere(recipe, tmp_path):
    for null in ("null", "Null", "NULL", "~"):
        assert (
            load_recipe(recipe, ["data.corpus.path=x", f"data.corpus.path={null}"]).data.corpus.path is None
        )
        with pytest.raises(RecipeError, match=r"^name=null: must be text; its default is run; .*quote it"):
            load_recipe(recipe, [f"name={null}"])
    assert load_recipe(recipe, ["name='null'"]).name == "null"
    assert load_recipe(recipe, ["monitor.wandb.entity='~'"]).monitor.wandb.entity == "~"
    with pytest.raises(RecipeError, match=r"monitor.wandb.tags=\[a, null\]: must be a list of text"):
        load_recipe(recipe, ["monitor.wandb.tags=[a, null]"])


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("steps=0100", 100),  # YAML 1.1 reads it in base 8
        ("steps=1_000", 1000),
        ("seed=+7", 7),
        ("job.threads=null", None),
        ("moe.layers=[01, 3]", [1, 3]),
        ("moe.num_experts=016", 16),
        ("moe.num_experts=[04, 8]", [4, 8]),
        ("moe.num_experts=${model.num_heads}", 4),
        ("optim.lr=1e-3", 1e-3),
        ("optim.lr=1", 1.0),
        ("optim.lr=010", 10.0),
        ("optim.clip=~", None),
        ("checkpoint.asynchronous=off", False),
        ("checkpoint.asynchronous=No", False),
        ("checkpoint.asynchronous=true", True),
    ],
)
def test_a_number_and_a_switch_are_read_by_the_type_of_their_key(recipe, override, value):
    key, _, text = override.partition("=")
    loaded = value_of(load_recipe(recipe, [override]), key)
    assert (loaded, type(loaded)) == (value, type(value))
    recipe.write_text(nested(key, f"'{text}'" if "$" in text else text))
    assert value_of(load_recipe(recipe), key) == value


@pytest.mark.parametrize(
    ("override", "refusal"),
    [
        ("steps=1:30", "steps=1:30: must be a whole number"),  # 90 in YAML 1.1
        ("seed=0x10", "seed=0x10: must be a whole number"),
        ("steps=1e3", "steps=1e3: must be a whole number"),
        ("moe.num_experts=0x10", "moe.num_experts=0x10: must be a whole number or a list of whole numbers"),
        ("moe.num_experts=[4, null]", "moe.num_experts=[4, null]: must be a whole number or a list of whole"),
        ("optim.lr=1:30", "optim.lr=1:30: must be a number"),
        ("optim.clip=", "optim.clip=: must be a number or null"),  # what $CLIP leaves where it is not set
        ("steps=", "steps=: must be a whole number"),
        ("monitor.wandb.mode=off", "monitor.wandb.mode=off: must be one of disabled, online, offline"),
        ("precision=016", "precision=016: must be one of fp32, bf16"),
        ("moe.router.kind=on", "moe.router.kind=on: is not a known kind"),
        ("name=???", "name=???: is OmegaConf's placeholder"),  # which would leave the default in silence
        ("steps=???", "steps=???: is OmegaConf's placeholder"),
        ("name=[a]", "name=[a]: must be text"),
        ("name=[a", "override=name=[a: is not valid YAML"),
    ],
)
def test_a_refused_value_is_shown_as_it_was_written(recipe, override, refusal):
    with pytest.raises(RecipeError) as refused:
        load_recipe(recipe, [override])
    assert str(refused.value).startswith(refusal)


@pytest.mark.parametrize(("kinds", "key"), text_keys(is_list=False))
def test_an_empty_text_is_a_problem(recipe, kinds, key):
    if key == "paper":
        return
    said = [str(problem) for problem in problems(load_recipe(recipe, [*kinds, f"{key}="]))]
    rules = ("is empty", "must be a valid folder name", "must name a data set", "needs a folder")
    assert [line for line in said if line.startswith(f"{key}='': ") and any(rule in line for rule in rules)]


def test_a_key_written_twice_is_refused_and_aliases_stay_apart(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("optim: {lr: 1, lr: 2}")
    with pytest.raises(RecipeError, match="found duplicate key lr"):
        load_recipe(path)
    path.write_text("model: &m {d_ff: 64}\nmoe: *m\n")
    assert load_recipe(path, ["moe.d_ff=32"]).model.d_ff == 64
    path.write_text(
        "a: &a [x, x]\n"
        + "".join(
            f"{c}: &{c} [*{p}, *{p}]\n" for p, c in zip("abcdefghijklmnop", "bcdefghijklmnopq", strict=True)
        )
    )
    with pytest.raises(RecipeError, match="more than 10,000 values"):
        load_recipe(path)
    path.write_text("a: &a [*a]")
    with pytest.raises(RecipeError, match="is not valid YAML"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("written", "key", "way_out"),
    [
        ("optim.lr: 1e-3", "optim.lr", "optim: {lr: 1e-3}"),
        ("moe: {router.k: 2}", "moe.router.k", "moe: {router: {k: 2}}"),
        (
            "optim: {schedule.warmup_steps: 5}",
            "optim.schedule.warmup_steps",
            "optim: {schedule: {warmup_steps: 5}}",
        ),
        ("monitor.wandb: {tags: [a, b]}", "monitor.wandb", "monitor: {wandb: {tags: [a, b]}}"),
    ],
)
def test_a_dotted_key_of_a_file_is_answered_with_nested_ones(tmp_path, recipe, written, key, way_out):
    path = tmp_path / "dotted.yaml"
    path.write_text(written)
    with pytest.raises(RecipeError) as refused:
        load_recipe(path)
    assert str(refused.value).startswith(f"{key}: ")
    assert str(refused.value).endswith(f"YAML keys are nested; write {way_out}")
    (tmp_path / "nested.yaml").write_text(way_out)
    kind = ["moe.router.kind=top_k"] if "router" in key else []
    load_recipe(tmp_path / "nested.yaml", kind)  # what the message says works
    with pytest.raises(RecipeError, match="YAML keys are nested"):
        load_recipe(recipe, ["optim={schedule.warmup_steps: 5}"])
