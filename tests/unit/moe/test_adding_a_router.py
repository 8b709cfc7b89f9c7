"""docs/adding-a-router.md is followed to the letter in a copy of the tree, and the contract holds for what it adds."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs/adding-a-router.md").read_text(), re.DOTALL)
CONTRACT = [
    *(f"tests/unit/moe/test_{name}.py" for name in ("router_contract", "layer_contract", "padding")),
    "tests/unit/test_finite_gradients.py",
]


def inserted(path: Path, before: str, text: str) -> None:
    """Put `text` in front of the only place where `before` stands."""
    whole = path.read_text()
    assert whole.count(before) == 1, (path, before)
    path.write_text(whole.replace(before, text + before))


@pytest.fixture
def tree(tmp_path):
    """The package and its tests with the page's router, and the rest of the repository as it is."""
    for name in ("moe_train", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("cluster", "kernels", "tools", "recipes", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    dataclass, line, router = BLOCKS
    kinds = tmp_path / "moe_train/config/kinds/router"
    (kinds / "cosine.py").write_text(dataclass)
    inserted(
        kinds / "__init__.py",
        "\n__all__",
        "from moe_train.config.kinds.router.cosine import CosineRouterConfig\n",
    )
    inserted(tmp_path / "moe_train/config/registry.py", '"hash": Kind(', line)
    (tmp_path / "moe_train/moe/routers/cosine.py").write_text(router)
    return tmp_path


def test_the_router_of_the_page_keeps_to_the_contract_and_is_held_against_extreme_logits(tree):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", "cosine", *CONTRACT]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr  # 5 if no test was found
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) > 40
