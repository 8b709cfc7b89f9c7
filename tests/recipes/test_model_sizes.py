"""The papers' own configurations: their parameters on the meta device, by the formula, in the table, in the paper."""

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from moe_train.config.check import problems
from moe_train.config.load import load_recipe
from moe_train.config.resolve import spec_of
from moe_train.model.count import count
from moe_train.model.transformer import build_on_meta
from moe_train.show import show

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
FULL_SIZE = sorted(
    str(path.relative_to(RECIPES).with_suffix(""))
    for path in RECIPES.glob("[!_]*/*.yaml")
    if not path.stem.startswith("tiny")
)
NO_FIGURE = "\N{EN DASH}"
UNITS = {"M": 1e6, "B": 1e9, "T": 1e12}


class Row(NamedTuple):
    """A row of the table; figures as they are printed, a dash where the paper has none."""

    workers: str
    total_of_paper: str
    total: str
    active_of_paper: str
    active: str
    within: str


def table() -> dict[str, Row]:
    rows = re.findall(
        r"^\| `(\w.*?)` \|(.*)\|$", (ROOT / "docs" / "model-sizes.md").read_text(), re.MULTILINE
    )
    return {recipe: Row(*(cell.strip() for cell in cells.split("|")[:6])) for recipe, cells in rows}


def printed(number: float) -> str:
    """Four digits and a unit."""
    unit = max((unit for unit in UNITS if number >= UNITS[unit]), key=UNITS.__getitem__)
    return f"{number / UNITS[unit]:#.4g}{unit}"


def is_within_one_percent(figure: str, ours: int) -> bool:
    return abs(ours / (float(figure[:-1]) * UNITS[figure[-1]]) - 1) <= 0.01


def rounds_to(figure: str, ours: int) -> bool:
    """Whether `ours`, with as many decimals as the paper prints, is the paper's figure."""
    decimals = len(figure[:-1].partition(".")[2])
    return f"{ours / UNITS[figure[-1]]:.{decimals}f}" == figure[:-1]


def test_the_table_has_every_full_size_recipe_and_no_other():
    assert sorted(table()) == FULL_SIZE


@pytest.mark.parametrize("name", FULL_SIZE)
def test_a_full_size_model_has_the_papers_parameters(name):
    recipe, row = load_recipe(RECIPES / f"{name}.yaml"), table()[name]
    assert problems(recipe, int(row.workers.replace(",", ""))) == []
    counted = count(spec_of(recipe))
    held = dict(build_on_meta(spec_of(recipe)).named_parameters())
    assert counted.total_parameters == sum(parameter.numel() for parameter in held.values())
    assert counted.parts["experts"] == sum(p.numel() for key, p in held.items() if ".experts." in key)
    assert (row.total, row.active) == (printed(counted.total_parameters), printed(counted.active_parameters))
    pairs = [(row.total_of_paper, counted.total_parameters), (row.active_of_paper, counted.active_parameters)]
    known = [(figure, ours) for figure, ours in pairs if figure != NO_FIGURE]
    if all(is_within_one_percent(figure, ours) for figure, ours in known):
        expected = "1%" if known else NO_FIGURE
    elif all(is_within_one_percent(figure, ours) or rounds_to(figure, ours) for figure, ours in known):
        expected = "as printed"
    else:
        expected = "no"
    assert row.within.partition(" (")[0] == expected
    if expected == "no":
        assert f"**{row.within[3:]}" in (ROOT / "docs" / "model-sizes.md").read_text()


def test_a_run_of_many_workers_is_shown_in_few_lines(capsys):
    assert show(str(RECIPES / "glam" / "64b_64e.yaml"), [], 1024, as_json=False) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "worker" in line]
    first = "workers 0, 64, ..., 960: expert 0 of each MoE layer, sharded over 16 workers"
    assert first in [line.strip() for line in lines]
    assert "and so on to worker 63 and those that hold the same" in [line.strip() for line in lines]
    assert len(lines) == 10
