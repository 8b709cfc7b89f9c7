"""docs/adding-a-guard.md is followed to the letter in a copy of the tree, and what it adds changes a run."""

import re
from pathlib import Path
from typing import Any

import pytest
from copied_tree import CopiedTree, code_blocks
from small_run import RECIPE, write_corpus

OVERFLOW = "guards=[{kind: overflow, drop_rate: 0, factor: 1000}]"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> CopiedTree:
    """The tree with the page's guard, and a recipe."""
    tree = CopiedTree(tmp_path_factory.mktemp("tree"))
    dataclass, line, guard = code_blocks("adding-a-guard.md")
    tree.write("moe_train/config/kinds/guard/overflow.py", dataclass)
    tree.insert("moe_train/config/registry.py", '        "spike": _guard(', f"        {line}")
    tree.write("moe_train/guards/overflow.py", guard)
    write_corpus(tree.path / "corpus")
    tree.write("small.yaml", RECIPE.format(corpus=tree.path / "corpus"))
    return tree


def rows_of(tree: CopiedTree, name: str, *overrides: str) -> list[dict[str, Any]]:
    """The rows of a run that drops tokens."""
    rows, _ = tree.train(Path("small.yaml"), tree.path / name, "moe.capacity_factor=0.5", *overrides)
    return rows


def test_the_guard_of_the_page_acts_and_its_action_is_a_row(tree):
    assert tree.touched == {"moe_train/config/registry.py"}
    plain, guarded = rows_of(tree, "plain"), rows_of(tree, "guarded", OVERFLOW)
    assert [row for row in plain if row.get("event") == "scale"] == []
    (scale,) = [row for row in guarded if row.get("event") == "scale"]
    assert (scale["step"], scale["guard"], scale["control"]) == (2, "overflow", "losses.balance")
    assert (scale["factor"], scale["until_step"]) == (1000, 102)
    assert re.fullmatch(r"a layer dropped \d+% of its assignments", scale["reason"])
    losses = [[row["loss"] for row in rows if "loss" in row] for rows in (plain, guarded)]
    assert losses[0][0] == losses[1][0], "before the guard acts, the runs are one"
    assert losses[0][1:] != losses[1][1:]


def test_what_its_dataclass_refuses_is_named_with_its_place(tree):
    done = tree.run(
        "moe_train.cli", "show", "small.yaml", "guards=[{kind: spike}, {kind: overflow, steps: 0}]"
    )
    assert "guards[1].steps=0: must be at least 1; its default is 100." in done.stdout
