"""docs/extending.md is followed in a copy of the tree, and the engine it adds trains as the native one does."""

from pathlib import Path
from typing import Any

import pytest
from copied_tree import CopiedTree, code_blocks
from small_run import RECIPE, write_corpus


@pytest.fixture
def tree(tmp_path: Path) -> CopiedTree:
    """The tree with the page's engine, and a recipe."""
    tree = CopiedTree(tmp_path / "tree")
    engine, dataclass, line = code_blocks("extending.md", "## An engine")
    tree.write("moe_train/engines/replicated.py", engine)
    tree.append("moe_train/config/kinds/engine.py", f"\n\n{dataclass}")
    tree.insert("moe_train/config/registry.py", "    },\n}\n\n\nPLUG_INS", line)
    write_corpus(tmp_path / "corpus")
    tree.write("small.yaml", RECIPE.format(corpus=tmp_path / "corpus"))
    return tree


def test_the_engine_of_the_page_trains_to_the_same_numbers_and_resumes_the_native_ones_checkpoint(
    tree, tmp_path
):
    assert tree.touched == {"moe_train/config/kinds/engine.py", "moe_train/config/registry.py"}

    def train(name: str, *words: str) -> list[dict[str, Any]]:
        """Loss and norm of every update."""
        rows, _ = tree.train(Path("small.yaml"), tmp_path / name, "--workers", "2", "log_every=1", *words)
        return [{key: row[key] for key in ("step", "loss", "grad_norm")} for row in rows if "loss" in row]

    native = train("native")
    replicated = train("replicated", "engine.kind=replicated")
    resumed = train("native", "engine.kind=replicated", "--resume", "2")[len(native) :]
    assert [row["step"] for row in native] == [1, 2, 3, 4, 5, 6]
    for run, expected in ((replicated, native), (resumed, native[2:])):
        assert all(row == pytest.approx(other, rel=1e-5) for row, other in zip(run, expected, strict=True))
