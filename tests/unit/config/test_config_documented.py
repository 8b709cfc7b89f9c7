"""docs/recipes.md has every key of a recipe, with every default it can have, and no other."""

import dataclasses
import re
from collections import defaultdict
from pathlib import Path

from moe_train.config.registry import GUARDS, OWN_KINDS
from moe_train.config.schema import Recipe

PAGE = Path(__file__).parents[3] / "docs" / "recipes.md"
ROW = re.compile(r"^\| `([a-z0-9_.[\]]+)` \| (.*?) \|", re.MULTILINE)
NAMED_OTHERWISE = {"name": "(the file)", "paper": "(empty)"}


def written(value: object) -> str:
    """A default as the page writes it."""
    if isinstance(value, list):
        return f"[{', '.join(value)}]"
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else '""' if value == "" else str(value)


def collect(section: object, prefix: str, into: dict[str, set[str]]) -> None:
    """Key -> defaults of all that is below `section`, kinds excepted."""
    for field in dataclasses.fields(section):
        key, value = f"{prefix}{field.name}", getattr(section, field.name)
        if not dataclasses.is_dataclass(value):
            into[key].add(NAMED_OTHERWISE.get(key, written(value)))
        elif key not in OWN_KINDS:
            collect(value, f"{key}.", into)


def test_the_page_of_recipes_has_every_key_with_its_defaults():
    expected: dict[str, set[str]] = defaultdict(set)
    collect(Recipe(), "", expected)
    for place, kinds in OWN_KINDS.items():
        for kind in kinds.values():
            collect(kind.config(), f"{place}.", expected)
        expected[f"{place}.kind"] = {next(iter(kinds))}
    for kind in GUARDS.own.values():
        collect(kind.config(), "guards[].", expected)
    page = dict(ROW.findall(PAGE.read_text()))
    assert page.keys() == expected.keys()
    for key, cell in page.items():
        default, _, others = cell.partition(" (`")
        said = {default, *re.findall(r"`: ([^,)]+)", others)} if others else {cell}
        assert said == expected[key], key
