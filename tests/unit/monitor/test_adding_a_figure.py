"""docs/extending.md is followed in a copy of the tree, and a run that goes on there has the figure in its rows."""

import re
from pathlib import Path
from typing import Any

import pytest
from copied_tree import ROOT, CopiedTree, code_blocks
from small_run import RECIPE, write_corpus


@pytest.fixture
def before(tmp_path: Path) -> CopiedTree:
    """The tree as it is, and a recipe with checkpoints between two rows."""
    write_corpus(tmp_path / "corpus")
    recipe = RECIPE.format(corpus=tmp_path / "corpus").replace(
        "checkpoint: {every: 2}", "checkpoint: {every: 3}"
    )
    (tmp_path / "small.yaml").write_text(recipe)
    return CopiedTree(tmp_path / "before")


@pytest.fixture
def after(tmp_path: Path) -> CopiedTree:
    """The tree with the page's figure, and the page of metrics with its row."""
    tree = CopiedTree(tmp_path / "after")
    (line,) = code_blocks("extending.md", "## A figure")
    (row,) = re.findall(
        r"^    (\| `kept_weight` .*\n)", (ROOT / "docs/extending.md").read_text(), re.MULTILINE
    )
    tree.insert("moe_train/moe/figures.py", '    Figure("experts_per_token"', f"    {line.strip()},\n")
    tree.insert("docs/metrics.md", "| `experts_per_token` |", row)
    return tree


def train(tree: CopiedTree, folder: Path, *words: str) -> tuple[dict[int, Any], str]:
    """The `moe` parts of the last attempt's rows by step, and what the run printed."""
    rows, output = tree.train(folder / "small.yaml", folder / "run", "moe.capacity_factor=null", *words)
    last = max(row["attempt"] for row in rows)
    moe = {row["step"]: row["moe"] for row in rows if "loss" in row and row["attempt"] == last}
    return moe, output


def test_a_figure_of_two_files_is_in_the_rows_of_a_run_that_began_without_it(before, after, tmp_path):
    assert after.touched == {"moe_train/moe/figures.py", "docs/metrics.md"}
    old, _ = train(before, tmp_path)
    new, output = train(after, tmp_path, "--resume", "3")
    assert "kept_weight" in output
    # Step 3 was counted without it, and its window ends with step 4.
    assert new[4].pop("kept_weight") == [None]
    # Without a capacity limit a token of this router keeps its largest probability.
    assert new[6].pop("kept_weight") == pytest.approx(new[6]["router_top_probability"], abs=1e-5)
    assert new == {step: old[step] for step in (4, 6)}

    again, output = train(before, tmp_path, "steps=8")
    assert "kept_weight" in output
    assert again.keys() == {8}
    assert "kept_weight" not in again[8]


def test_the_page_of_metrics_is_asked_for_the_figure(after):
    documented = ("pytest", "-q", "-p", "no:cacheprovider", "tests/unit/monitor/test_metrics_documented.py")
    assert after.run(*documented).returncode == 0
    after.replace("docs/metrics.md", "| `kept_weight` |", "| `weight` |")
    assert after.run(*documented).returncode == 1
