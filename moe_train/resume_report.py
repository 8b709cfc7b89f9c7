"""Reports what a resume changes: the keys with both values, and the learning rate at its first step."""

from collections.abc import Iterator
from pathlib import Path

from moe_train.checkpoint.folder import CheckpointFolder
from moe_train.checkpoint.lineage import eligible_steps, newest_attempt
from moe_train.config.changes import changed_keys, comparable, shown
from moe_train.config.registry import build
from moe_train.config.schema import Recipe
from moe_train.run_folder import RunFolder


def report_changes(run_dir: Path, recipe: Recipe, resume: str) -> list[str]:
    """Returns a sentence for each key that `recipe` changes in the run of `run_dir`, and one for the learning rate.

    Raises MoETrainError for a folder that cannot be read.
    """
    steps = eligible_steps(CheckpointFolder(run_dir), newest_attempt(run_dir))
    step = int(resume) if resume.isdecimal() else max(steps, default=0)
    return list(changes_from(RunFolder(run_dir).recipe(), recipe, step))


def changes_from(before: Recipe, now: Recipe, step: int) -> Iterator[str]:
    """Yield the differences between two recipes of a run that has trained `step` steps."""
    changed = changed_keys(comparable(before), comparable(now))
    for key, old, new in changed:
        yield f"{key}={shown(new)}: changed from {shown(old)} by this resume"
    old_rate, new_rate = next_rate(before, step), next_rate(now, step)
    if changed and new_rate != old_rate:
        times = f", {new_rate / old_rate:.3g} times as much" if old_rate else ""
        yield (
            f"the learning rate at step {step + 1} is {new_rate:.4g}{times}, not {old_rate:.4g} as with the previous "
            f"recipe{_why_stretched(before, now)}"
        )


def next_rate(recipe: Recipe, step: int) -> float:
    """Returns the learning rate of the update that follows `step` updates."""
    schedule = build("optim.schedule", recipe.optim.schedule, steps=recipe.steps)
    return float(recipe.optim.lr * schedule(step))


def _why_stretched(before: Recipe, now: Recipe) -> str:
    schedule = now.optim.schedule
    if not schedule.spans_run or now.steps == before.steps:
        return ""
    return (
        f"; the {schedule.kind} schedule now ends at step {now.steps}, not {before.steps}: set "
        "optim.schedule.kind=constant and optim.lr to keep a rate"
    )
