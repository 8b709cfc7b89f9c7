"""Reads a run from its folder, without importing torch: its recipe, its rows, its attempts.

It works for a run that has not written a row yet, one that is running, and one that has ended.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_train.config.load import load_recipe
from moe_train.config.resolve import spec_of
from moe_train.config.schema import Recipe
from moe_train.errors import RunError, UsageError, dangling_link
from moe_train.monitor.rows import METRICS_FILE, Row, current_rows, read_rows
from moe_train.monitor.state import read_state
from moe_train.run_folder import RECIPE_FILE

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunRecord:
    """Holds a run as recorded in its folder. The rows are those that count, by step."""

    name: str
    """Name of the run's folder, which its recipe's `name` need not be."""
    recipe: Recipe
    training: Sequence[Row]
    validation: Sequence[Row]
    events: Sequence[Row]
    state: str
    """State of the run in one word: see state.py."""
    attempts: int
    workers: int
    """Of the newest attempt; 0 before it began."""

    @property
    def layers(self) -> list[str]:
        """Returns the names of the MoE layers, in the order of the rows' lists."""
        return [f"layer {layer}" for layer in spec_of(self.recipe).moe_layers]

    @property
    def resumes(self) -> int:
        """Counts how often the run resumed from a checkpoint."""
        return sum(row["event"] == "resume" for row in self.events)


def find_run(name: str, marks: Sequence[str] = (RECIPE_FILE,)) -> Path:
    """Returns the folder of a run: a path, or a name below `runs`, that has one of the files `marks`.

    Raises UsageError if there is no run, RunError if the folder cannot be read.
    """
    for folder in (Path(name), Path("runs", name)):
        if link := dangling_link(folder):
            raise RunError.unreachable(folder, link)
        try:
            if any((folder / mark).is_file() for mark in marks):
                return folder
        except OSError as error:
            raise RunError.unreadable(folder, error) from None
    names = sorted({path.parent.name for mark in marks for path in Path("runs").glob(f"*/{mark}")})
    hint = f"known runs: {', '.join(names)}" if names else "`moe-train run RECIPE` makes one"
    raise UsageError(f"RUN={name}: there is no run folder (one with a {' or '.join(marks)}); {hint}")


def read_run(run_dir: Path) -> RunRecord:
    """Reads a run folder and queries its job's scheduler. Raises MoETrainError or ClusterError if that fails."""
    try:
        return _read(run_dir)
    except OSError as error:
        raise RunError.unreadable(run_dir, error) from None


def _read(run_dir: Path) -> RunRecord:
    passed_over: list[str] = []
    recipe = load_recipe(run_dir / RECIPE_FILE, passed_over=passed_over)
    if passed_over:
        log.warning("%s: this version does not have %s; passed over.", RECIPE_FILE, ", ".join(passed_over))
    rows = current_rows(read_rows(run_dir / METRICS_FILE))
    attempts = [int(entry.name) for entry in (run_dir / "attempts").glob("*") if entry.name.isdigit()]
    newest = run_dir / "attempts" / str(max(attempts, default=0))
    return RunRecord(
        name=run_dir.absolute().name,
        recipe=recipe,
        training=[row for row in rows if "loss" in row],
        validation=[row for row in rows if "validation_loss" in row],
        events=[row for row in rows if "event" in row],
        state=read_state(run_dir).word,
        attempts=len(attempts),
        workers=len(list(newest.glob("rank-*"))),
    )
