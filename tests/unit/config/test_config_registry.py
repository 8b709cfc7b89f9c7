"""The registry and the code behind it; no field that nobody reads."""

import re
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path

import pytest

from moe_train.config import schema
from moe_train.config.registry import REGISTRY, implementation

ROOT = Path(__file__).parents[3]
KINDS = [(place, kind) for place, known in REGISTRY.items() for kind in known]
MODULES = [
    schema,
    *(
        import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
        for path in sorted((ROOT / "moe_train/config/kinds").rglob("*.py"))
    ),
]
SECTIONS = [
    found
    for module in MODULES
    for found in vars(module).values()
    if isinstance(found, type) and is_dataclass(found) and found.__module__ == module.__name__
]


@pytest.mark.parametrize(("place", "kind"), KINDS, ids=" ".join)
def test_every_kind_has_code_behind_it(place, kind):
    assert callable(implementation(place, kind))


@pytest.mark.parametrize(("place", "kind"), KINDS, ids=" ".join)
def test_every_kind_knows_its_own_name(place, kind):
    assert REGISTRY[place][kind].config().kind == kind


def test_the_default_of_a_place_is_its_first_kind():
    recipe = schema.Recipe()
    for place, known in REGISTRY.items():
        node = recipe
        for part in place.split("."):
            node = getattr(node, part)
        assert node.kind == next(iter(known)), place


def test_every_section_is_either_a_kind_or_part_of_a_recipe():
    assert len(SECTIONS) > 25


def test_every_field_of_a_recipe_is_read_outside_of_the_configuration():
    code = "\n".join(
        path.read_text()
        for path in (ROOT / "moe_train").rglob("*.py")
        if "config" not in path.parts or path.name == "registry.py"
    )
    code += (ROOT / "moe_train/config/resolve.py").read_text()
    unread = [
        f"{section.__name__}.{field.name}"
        for section in SECTIONS
        for field in fields(section)
        if not re.search(rf"\.{field.name}\b", code)
    ]
    assert sorted(unread) == [  # read through methods of theirs
        "MaskedConfig.rate",
        "SpanCorruptionConfig.mean_span",
        "SpanCorruptionConfig.rate",
        "SpanCorruptionConfig.sentinels",
    ]
