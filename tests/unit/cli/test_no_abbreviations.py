"""No parser takes an abbreviated option: where there is no `--workers`, it would mean `--workers-per-node`."""

import ast
from pathlib import Path

import pytest
from small_run import Command, tree

ROOT = Path(__file__).parents[3]
SOURCES = [
    path
    for name in ("moe_train", "cluster", "kernels", "tools", "tests")
    for path in (ROOT / name).rglob("*.py")
]


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """Every call of a method or function in a file, by its last name."""
    found = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return [(getattr(call.func, "attr", getattr(call.func, "id", "")), call) for call in found]


def forbids(call: ast.Call) -> bool:
    """Whether a call says allow_abbrev=False."""
    return any(
        word.arg == "allow_abbrev" and isinstance(word.value, ast.Constant) and word.value.value is False
        for word in call.keywords
    )


def test_every_parser_in_the_tree_takes_full_names_only() -> None:
    checked, wrong = 0, []
    for path in SOURCES:
        found = calls(path)
        takes_over = any(name == "Parser" for name, _ in found)  # whose sub-parsers are of its own class
        for name, call in found:
            if name in ("ArgumentParser", "add_parser"):
                checked += 1
                if not forbids(call) and not (name == "add_parser" and takes_over):
                    wrong.append(f"{path.relative_to(ROOT)}:{call.lineno}")
    assert checked > 15
    assert wrong == []


@pytest.mark.parametrize(
    "words",
    [
        ["run", "small.yaml", "--work", "2"],
        ["run", "small.yaml", "--dry"],
        ["show", "small.yaml", "--js"],
        ["submit", "small.yaml", "--workers", "2"],
        ["submit", "small.yaml", "--dry"],
        ["resume", "run", "--workers", "2"],
        ["sweep", "small.yaml", "seed=0,1", "--res"],
        ["status", "run", "--js"],
        ["list", "--js"],
        ["logs", "run", "--foll"],
        ["cancel", "run", "--he"],
        ["monitor", "run", "--ht", "x.html"],
        ["ckpt", "verify", "run", "--st", "2"],
        ["ckpt", "gc", "run", "--dry"],
        ["data", "info", "small.yaml", "--he"],
        ["fork", "run", "new", "--st", "2"],
        ["translate", "run", "--st", "2"],
    ],
)
def test_an_abbreviated_option_is_refused(moe_train: Command, folder: Path, words: list[str]) -> None:
    before = tree(folder)
    ended = moe_train(*words)
    assert ended.code == 2
    assert words[-1] in ended.errors or words[-2] in ended.errors
    assert "Traceback" not in ended.errors
    assert tree(folder) == before
