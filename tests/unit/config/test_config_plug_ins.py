"""Kinds of installed packages are found without an import, and checked before a recipe that names them is used."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from installed_package import install, install_acme_moe
from tiny_model import tiny_recipe

from moe_train.callbacks.group import offered_callback
from moe_train.config.check import problems
from moe_train.config.load import to_yaml
from moe_train.config.notes import notes
from moe_train.config.registry import OWN_KINDS, PLUG_INS, REGISTRY, build
from moe_train.errors import RecipeError

OTHER = """
    from dataclasses import dataclass
    from moe_train.config.kinds.{module} import {base}
    from moe_train.config.registry import Kind

    @dataclass
    class OtherConfig({base}):
        kind: str = "other"
        speed: int = 3

    OTHER = Kind(OtherConfig, "other_{place}.code:Other")
"""
BASES = {
    "moe.router": ("router.router", "RouterConfig"),
    "model.depth": ("depth", "DepthConfig"),
    "moe.dispatch": ("dispatch", "DispatchConfig"),
    "objective": ("objective", "ObjectiveConfig"),
    "data.corpus": ("data", "CorpusConfig"),
    "data.tokenizer": ("data", "BPEConfig"),
    "optim": ("optim", "OptimConfig"),
    "optim.schedule": ("optim", "ScheduleConfig"),
    "engine": ("engine", "NativeEngineConfig"),
}


@pytest.fixture
def site(tmp_path, monkeypatch) -> Path:
    """A folder on sys.path, whose modules are forgotten at the end."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def broken(site: Path, code: str, *, entry: str = "broken_package:KIND", name: str = "nonsense") -> None:
    """A package that offers the router `name`, whose module is `code`."""
    install(site, {"broken_package.py": code}, {"moe_train.routers": {name: entry}}, name="broken-package")
    importlib.invalidate_caches()


KIND = """
    from dataclasses import dataclass
    from moe_train.config.kinds.router.router import RouterConfig
    from moe_train.config.registry import Kind

    @dataclass
    class NonsenseConfig(RouterConfig):
        kind: str = "nonsense"
        {field}

    KIND = Kind({config}, {code!r})
"""


def kind(field: str = "", config: str = "NonsenseConfig", code: str = "broken_package:Router") -> str:
    return KIND.format(field=field, config=config, code=code)


def test_a_kind_of_a_package_is_read_checked_noted_and_built_like_any_other(site):
    install_acme_moe(site)
    recipe = tiny_recipe("moe.router.kind=cosine", "moe.router.k=2", "objective.kind=calm_language")
    assert type(recipe.moe.router).__name__ == "CosineRouterConfig"
    assert (recipe.moe.router.k, recipe.moe.router.balance_coefficient) == (2, 0.01)
    assert "kind: cosine" in to_yaml(recipe)
    assert problems(recipe) == []
    said = [note for note in notes(recipe) if "package" in note]
    assert said == [
        f"{key}: comes from the package acme-moe 1.0, which every worker must have"
        for key in ("moe.router.kind=cosine", "objective.kind=calm_language")
    ]
    router = build("moe.router", recipe.moe.router, d_model=4, num_experts=8, group=1, site="")
    assert type(router).__module__ == "acme_moe.cosine"
    (problem,) = problems(tiny_recipe("moe.router.kind=cosine", "moe.router.k=9"))
    assert problem.key == "moe.router.k"
    with pytest.raises(RecipeError, match=r"moe.router.kk: there is no such key in a recipe; did you mean"):
        tiny_recipe("moe.router.kind=cosine", "moe.router.kk=2")


def test_without_its_package_a_kind_is_not_known():
    with pytest.raises(
        RecipeError, match=r"moe.router.kind=cosine: is not a known kind.*, or install the package"
    ):
        tiny_recipe("moe.router.kind=cosine")


def test_what_packages_offer_is_among_the_kinds_that_a_message_lists(site):
    install_acme_moe(site)
    with pytest.raises(RecipeError, match=r"moe.router.kind=sine: is not a known kind.*\bcosine\b"):
        tiny_recipe("moe.router.kind=sine")


def test_every_place_of_the_registry_takes_kinds_of_packages():
    assert PLUG_INS.keys() == OWN_KINDS.keys() == REGISTRY.keys() == BASES.keys()


@pytest.mark.parametrize("place", sorted(BASES))
def test_a_kind_is_found_at_its_place(site, place):
    module, base = BASES[place]
    package, (group, _) = f"other_{place.replace('.', '_')}", PLUG_INS[place]
    code = OTHER.format(module=module, base=base, place=place.replace(".", "_"))
    install(
        site,
        {f"{package}/__init__.py": code, f"{package}/code.py": "Other = print"},
        {group: {"other": f"{package}:OTHER"}},
    )
    recipe = tiny_recipe(f"{place}.kind=other", f"{place}.speed=5")
    node = recipe
    for part in place.split("."):
        node = getattr(node, part)
    assert (node.kind, node.speed) == ("other", 5)
    assert list(REGISTRY[place])[-1] == "other"
    assert next(iter(REGISTRY[place])) == next(iter(OWN_KINDS[place])), "the default stays"
    assert len(REGISTRY[place]) == len(OWN_KINDS[place]) + 1


@pytest.mark.parametrize(
    ("code", "rule"),
    [
        ("raise OSError('no licence')", r"cannot be loaded \(OSError: no licence\); correct the package"),
        ("import nowhere_at_all", r"cannot be loaded \(ModuleNotFoundError"),
        ("", r"cannot be loaded \(AttributeError"),
        ("KIND = 3", "must name a Kind of moe_train.config.registry, not a int"),
        (kind(config="int"), "must have a config that derives from RouterConfig"),
        (kind(field="x: object = print"), r"has a config that cannot be part of a recipe \("),
        (
            kind().replace('"nonsense"', '"sense"'),
            "must have a config whose field kind is 'nonsense', not 'sense'",
        ),
        (kind(code="broken_package"), 'must name its code as "module:name", not'),
        (
            kind(code="broken_package.far.away:Router"),
            "names the module broken_package.far.away, which does not exist",
        ),
    ],
    ids=str,
)
def test_a_package_that_is_broken_is_named_with_the_key_and_the_way_out(site, code, rule):
    broken(site, code)
    with pytest.raises(RecipeError, match=rule) as refused:
        tiny_recipe("moe.router.kind=nonsense")
    assert str(refused.value).startswith("moe.router.kind=nonsense: entry point broken_package:KIND")
    assert "broken-package 1.0" in str(refused.value)
    assert tiny_recipe().moe.router.kind == "switch", "who does not name it is not bothered"


@pytest.mark.parametrize(
    "override", ["moe.router.kk=3", "moe.router.gamma=3", "moe.rooter=3", "objective.alpha=1"]
)
def test_a_mistake_in_a_recipe_that_does_not_name_it_is_told_as_if_the_package_were_not_there(site, override):
    with pytest.raises(RecipeError) as without:
        tiny_recipe(override)
    broken(site, "raise OSError('no licence')")
    with pytest.raises(RecipeError) as refused:
        tiny_recipe(override)
    assert str(refused.value) == str(without.value)
    assert "broken_package" not in sys.modules


def test_code_that_cannot_be_imported_is_named_when_it_is_built(site):
    broken(site, kind(code="broken_package:Nowhere"))
    recipe = tiny_recipe("moe.router.kind=nonsense")
    expected = "moe.router.kind=nonsense: broken_package:Nowhere of the package broken-package 1.0 cannot be imported"
    with pytest.raises(RecipeError, match=expected):
        build("moe.router", recipe.moe.router)


def test_a_name_of_moe_train_s_own_cannot_be_taken(site):
    broken(site, kind(), name="top_k")
    with pytest.raises(
        RecipeError,
        match=r"moe.router.kind=top_k: is moe-train's own kind, but the package broken-package 1.0",
    ):
        tiny_recipe("moe.router.kind=top_k")
    assert tiny_recipe("moe.router.kind=gshard").moe.router.kind == "gshard"


def test_two_packages_cannot_offer_the_same_name(site):
    install_acme_moe(site)
    broken(site, kind(), name="cosine")
    expected = (
        r"moe.router.kind=cosine: is offered by .*(acme-moe|broken-package) 1.0 and .* uninstall one of them"
    )
    with pytest.raises(RecipeError, match=expected):
        tiny_recipe("moe.router.kind=cosine")


def test_callbacks_are_looked_for_before_anything_starts(site):
    install_acme_moe(site)
    install(
        site,
        {"other_callbacks.py": "class Late:\n    def __init__(self, when): ...\n\nclass Stranger: ...\n"},
        {
            "moe_train.callbacks": {
                "late": "other_callbacks:Late",
                "stranger": "other_callbacks:Stranger",
                "gone": "other_callbacks:Gone",
            }
        },
        name="other-callbacks",
    )
    importlib.invalidate_caches()
    assert problems(tiny_recipe("monitor.callbacks=[losses]")) == []
    assert type(offered_callback("losses")).__module__ == "acme_moe.losses"
    (problem,) = problems(tiny_recipe("monitor.callbacks=[lossy,losses]"))
    assert str(problem) == (
        "monitor.callbacks=lossy: is in no installed package; installed packages offer in moe_train.callbacks: gone, "
        "late, losses, stranger; install its package, or leave it out."
    )
    (problem,) = problems(tiny_recipe("monitor.callbacks=[console]"))
    assert "is moe-train's own, which every run has" in str(problem)
    with pytest.raises(RecipeError, match=r"monitor.callbacks=gone: .*other-callbacks 1.0 cannot be loaded"):
        problems(tiny_recipe("monitor.callbacks=[gone]"))
    with pytest.raises(RecipeError, match=r"monitor.callbacks=late: .*cannot be made without arguments"):
        offered_callback("late")
    with pytest.raises(RecipeError, match=r"monitor.callbacks=stranger: must be a Callback"):
        offered_callback("stranger")


def test_reading_a_recipe_imports_neither_torch_nor_packages_that_it_does_not_name(site):
    install_acme_moe(site)
    recipe = Path(__file__).parents[2] / "tiny_model.yaml"
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from moe_train.config.load import load_recipe\n"
        "load_recipe(sys.argv[2])\n"
        "assert 'acme_moe' not in sys.modules\n"
        "load_recipe(sys.argv[2], ['moe.router.kind=cosine'])\n"
        "assert 'acme_moe' in sys.modules and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(site), str(recipe)], check=True, timeout=120)
