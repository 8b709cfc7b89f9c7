"""A copy of the repository that a test changes as a how-to page says, and then runs."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from fresh_cache import fresh_cache

ROOT = Path(__file__).parents[1]


def code_blocks(page: str, heading: str = "", language: str = "python") -> list[str]:
    """The blocks of code on a page of docs/, or in the section with this heading."""
    text = (ROOT / "docs" / page).read_text()
    if heading:
        level = heading.split(" ")[0]
        text = text.split(f"\n{heading}\n")[1].split(f"\n{level} ")[0]
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


class CopiedTree:
    """The package, tests and pages copied, the rest of the repository linked.

    `touched` are files that were there before.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.touched: set[str] = set()
        for name in ("moe_train", "tests", "docs"):
            shutil.copytree(ROOT / name, path / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("cluster", "kernels", "tools", "recipes"):
            (path / name).symlink_to(ROOT / name)
        shutil.copy(ROOT / "pyproject.toml", path)

    def write(self, name: str, text: str) -> None:
        """Write a new file."""
        file = self.path / name
        assert not file.exists(), f"{name} is there already"
        file.write_text(text)

    def insert(self, name: str, before: str, text: str) -> None:
        """Put `text` in front of the only place where `before` stands."""
        self._change(name, before, text + before)

    def append(self, name: str, text: str) -> None:
        """Put `text` at the end of a file."""
        self.touched.add(name)
        with (self.path / name).open("a") as file:
            file.write(text)

    def replace(self, name: str, old: str, new: str) -> None:
        """Put `new` in the only place where `old` stands."""
        self._change(name, old, new)

    def run(
        self, *arguments: str, timeout_s: float = 240.0, **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        """Run `python -m ARGUMENTS` on the copy; its output is kept as text."""
        places = os.pathsep.join(str(self.path / part) for part in (".", "cluster", "kernels"))
        return subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=self.path,
            env={**os.environ, "PYTHONPATH": places, **environment},
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    def train(self, recipe: Path, run_dir: Path, *overrides: str) -> tuple[list[dict[str, Any]], str]:
        """Train a recipe to its end with the copy; the rows of the run so far, and what it printed."""
        command = ("moe_train.cli", "run", str(recipe), "--run-dir", str(run_dir), *overrides)
        done = self.run(*command, MOE_TRAIN_CACHE=str(fresh_cache(run_dir.parent)), OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stdout + done.stderr
        rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        return rows, done.stdout + done.stderr

    def _change(self, name: str, old: str, new: str) -> None:
        whole = (self.path / name).read_text()
        assert whole.count(old) == 1, (name, old)
        self.touched.add(name)
        (self.path / name).write_text(whole.replace(old, new))
