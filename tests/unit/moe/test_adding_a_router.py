"""docs/adding-a-router.md is followed to the letter in a copy of the tree, and the contract holds for what it adds."""

import re

import pytest
from copied_tree import CopiedTree, code_blocks

CONTRACT = [
    *(f"tests/unit/moe/test_{name}.py" for name in ("router_contract", "layer_contract", "padding")),
    "tests/unit/test_finite_gradients.py",
]


@pytest.fixture
def tree(tmp_path):
    """The tree with the page's router."""
    tree = CopiedTree(tmp_path)
    dataclass, line, router = code_blocks("adding-a-router.md")
    tree.write("moe_train/config/kinds/router/cosine.py", dataclass)
    tree.insert("moe_train/config/registry.py", '"hash": _router(', line)
    tree.write("moe_train/moe/routers/cosine.py", router)
    return tree


def test_the_router_of_the_page_keeps_to_the_contract_and_is_held_against_extreme_logits(tree):
    assert len(tree.touched) <= 2
    done = tree.run("pytest", "-p", "no:cacheprovider", "-k", "cosine", *CONTRACT)
    assert done.returncode == 0, done.stdout + done.stderr  # 5 if no test was found
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) > 40
