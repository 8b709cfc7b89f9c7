"""docs/adding-a-guard.md is followed to the letter in a copy of the tree, and what it adds changes a run."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_run import RECIPE, environment, write_corpus

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/adding-a-guard.md").read_text()
DATACLASS, LINE, GUARD = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
OVERFLOW = "guards=[{kind: overflow, drop_rate: 0, factor: 1000}]"


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """The package with the page's guard: two files of its own, and one that is touched."""
    path = tmp_path_factory.mktemp("tree")
    shutil.copytree(ROOT / "moe_train", path / "moe_train", ignore=shutil.ignore_patterns("__pycache__"))
    (path / "moe_train/config/kinds/guard/overflow.py").write_text(DATACLASS)
    (path / "moe_train/guards/overflow.py").write_text(GUARD)
    registry = path / "moe_train/config/registry.py"
    text, before = registry.read_text(), '        "spike": _guard('
    assert text.count(before) == 1
    registry.write_text(text.replace(before, f"        {LINE}{before}"))
    write_corpus(path / "corpus")
    (path / "small.yaml").write_text(RECIPE.format(corpus=path / "corpus"))
    return path


def moe_train(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command of the tree's package."""
    command = [sys.executable, "-m", "moe_train.cli", *arguments]
    variables = {**os.environ, **environment(tree)}
    return subprocess.run(command, cwd=tree, env=variables, capture_output=True, text=True, timeout=240)


def rows_of(tree: Path, name: str, *overrides: str) -> list[dict]:
    """The rows of a run of the tree's package."""
    done = moe_train(tree, "run", "small.yaml", "--run-dir", name, "moe.capacity_factor=0.5", *overrides)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in (tree / name / "metrics.jsonl").read_text().splitlines()]


def test_the_guard_of_the_page_acts_and_its_action_is_a_row(tree):
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
    done = moe_train(tree, "show", "small.yaml", "guards=[{kind: spike}, {kind: overflow, steps: 0}]")
    assert "guards[1].steps=0: must be at least 1; its default is 100." in done.stdout
