"""Trains every tiny recipe, one after the other, and prints what its validation loss was before and after.

    python tools/learn_tiny.py [--runs DIR] [--only WORD] [--table] [key=value ...]

A recipe has its own number of updates (or as `steps=` says), one thread, and a folder of its own in DIR. What is
finished there is not made again, and what was cut off goes on, so the tool may be stopped at any time; `--table` trains
nothing. Losses of different objectives cannot be compared, nor can those of recipes with different corpora.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measurement import machine, text_table

from moe_cluster.output import run_main
from moe_train.config.load import load_recipe
from moe_train.monitor.rows import METRICS_FILE, read_rows

RECIPES = Path(__file__).parents[1] / "recipes"


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is not finished, print the table; 1 if a run failed."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/tiny"))
    parser.add_argument(
        "--only", action="append", metavar="WORD", help="recipes whose name has one of these words"
    )
    parser.add_argument("--table", action="store_true", help="print the table of what is there")
    parser.add_argument("changes", nargs="*", metavar="key=value", help="of all recipes")
    options = parser.parse_args(arguments)
    chosen = [path for path in tiny_recipes() if any(word in name_of(path) for word in options.only or [""])]
    failed = [] if options.table else [path for path in chosen if not trained(path, options)]
    rows = [row for path in chosen if (row := row_of(path, run_of(path, options)))]
    print(text_table(rows, markdown=True))
    print(machine())
    for path in failed:
        print(f"failed: {name_of(path)}", file=sys.stderr)
    return 1 if failed else 0


def tiny_recipes() -> list[Path]:
    """The files of all tiny recipes."""
    return sorted(RECIPES.glob("[!_]*/tiny*.yaml"))


def name_of(path: Path) -> str:
    """FOLDER/FILE, as the documents call a recipe."""
    return f"{path.parent.name}/{path.stem}"


def run_of(path: Path, options: argparse.Namespace) -> Path:
    """The folder of a recipe's run."""
    return options.runs / name_of(path).replace("/", "-")


def trained(path: Path, options: argparse.Namespace) -> bool:
    """Train a recipe to its end, unless it was; whether it got there."""
    steps, run_dir = load_recipe(path, options.changes).steps, run_of(path, options)
    if max(validation_losses(run_dir), default=-1) == steps:
        return True
    command = [
        sys.executable,
        "-P",
        "-m",
        "moe_train.cli",
        "run",
        str(path),
        "--run-dir",
        str(run_dir),
        *options.changes,
    ]
    return subprocess.run(command, env={"OMP_NUM_THREADS": "1", **os.environ}).returncode == 0


def validation_losses(run_dir: Path) -> dict[int, float]:
    """Nats per token by step; empty before there is one."""
    rows = read_rows(run_dir / METRICS_FILE)
    return {row["step"]: row["validation_loss"] for row in rows if "validation_loss" in row}


def row_of(path: Path, run_dir: Path) -> dict[str, Any]:
    """A row of the table; empty before the run has come to its end."""
    losses = validation_losses(run_dir)
    steps = load_recipe(run_dir / "recipe.yaml").steps if losses else 0
    if steps not in losses:
        return {}
    return {
        "recipe": f"`{name_of(path)}`",
        "objective": load_recipe(path).objective.kind,
        "updates": steps,
        "at the start": losses[0],
        "at the end": losses[steps],
    }


if __name__ == "__main__":
    sys.exit(run_main(main))
