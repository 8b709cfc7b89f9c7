"""Decides how a launch uses the content of its run folder, and refuses what would lose or mix up checkpoints.

`run`, `submit` and `sweep` all call it before they write anything. Nothing here writes. Read `run_folder.py` next.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

from moe_cluster.contract import attempt_dir
from moe_cluster.restarts import outcomes
from moe_train.checkpoint.folder import CheckpointFolder
from moe_train.checkpoint.lineage import (
    Writers,
    eligible_steps,
    newest_attempt,
    started_attempts,
    unexplained_steps,
    writers,
)
from moe_train.checkpoint.manifest import read_manifest
from moe_train.config.changes import changed_keys, comparable, require_same, shown
from moe_train.config.schema import Recipe
from moe_train.errors import CheckpointError, RunError, UsageError, dangling_link
from moe_train.identity import read_identity
from moe_train.run_folder import RunFolder


class Start(Enum):
    """Lists what a launch may do with its run folder."""

    NEW = "start a run in an empty folder"
    AFRESH = "move the folder's run aside and start another"
    RESUME = "resume the folder's run"
    FINISHED = "nothing: the run has trained all its steps"


def plan_start(run_dir: Path, recipe: Recipe, resume: str) -> Start:
    """Decide what `resume` (auto, never or a step) means for this folder and recipe.

    Raises UsageError if the recipe cannot resume the folder's run, RunError or CheckpointError if the folder cannot be
    read.
    """
    try:
        require_reachable(run_dir)
        return _plan(run_dir, recipe, resume)
    except OSError as error:
        raise RunError.unreadable(run_dir, error) from None


def _plan(run_dir: Path, recipe: Recipe, resume: str) -> Start:
    folder, checkpoints = RunFolder(run_dir), CheckpointFolder(run_dir)
    if resume == "never":
        return Start.AFRESH if folder.holds_run or checkpoints.steps() else Start.NEW
    if has_begun(run_dir):
        folder.require_same_run(recipe)
        written_by = writers(checkpoints)
        eligible = eligible_steps(checkpoints, newest_attempt(run_dir), written_by)
        if resume == "auto":
            _require_explained(checkpoints, eligible, written_by)
            return _on_from_newest(folder, checkpoints, recipe, eligible)
        _require_step(checkpoints, resume, eligible)
        folder.finished_step()  # raises if it cannot be read
        _require_later_step(recipe, resume)
        return Start.RESUME
    if not checkpoints.steps():
        if resume == "auto":
            return Start.NEW
        raise UsageError(
            f"--resume {resume}: {run_dir} has no run to resume; use --resume auto, or name the run's folder"
        )
    if resume == "auto":
        raise UsageError(_of_no_attempt(checkpoints, checkpoints.steps()))
    _require_step(checkpoints, resume, checkpoints.steps())
    _require_recipe_of(checkpoints.committed(int(resume)), recipe)
    _require_later_step(recipe, resume)
    return Start.RESUME


@contextmanager
def options_explained() -> Iterator[None]:
    """Adds to an error that names --resume or --run-dir whose options they are, for commands without them."""
    try:
        yield
    except (UsageError, RunError) as error:
        if "--resume" not in str(error) and "--run-dir" not in str(error):
            raise
        raise type(error)(f"{error}\n  (--resume and --run-dir are options of `run` and `submit`)") from None


def workers_until_now(run_dir: Path) -> int:
    """Returns the number of workers of the newest attempt that began; before the first, of the run it was forked from,
    or 1. Raises RunError."""
    try:
        if started := started_attempts(run_dir):
            return len(list(attempt_dir(run_dir, started[-1]).glob("rank-*")))
    except OSError as error:
        raise RunError.unreadable(run_dir, error) from None
    identity = read_identity(run_dir)
    return identity.workers if identity is not None else 1


def has_begun(run_dir: Path) -> bool:
    """Returns whether the folder has a run: a trainer has accepted a recipe in it, or it was forked."""
    if started_attempts(run_dir):
        return True
    identity = read_identity(run_dir)
    return identity is not None and identity.forked_from is not None


def require_reachable(run_dir: Path, argument: str = "--run-dir") -> None:
    """Raise RunError if the folder, or one above it, is a file or a dangling link; the user named it as `argument`."""
    for path in (run_dir, CheckpointFolder(run_dir).root):
        if link := dangling_link(path):
            raise RunError.unreachable(run_dir, link, argument)
    for path in (run_dir, *run_dir.parents):
        if os.path.exists(path) and not os.path.isdir(path):
            raise RunError.not_a_folder(run_dir, path, argument)


def require_same_recipe(checkpoint_meta: Mapping[str, Any], recipe: Recipe, where: str) -> None:
    """Raise UsageError if a checkpoint's meta has another model, data or seed than `recipe`.

    A key that only one of them has comes from another version of moe-train and is ignored.
    """
    saved = checkpoint_meta.get("recipe")
    if saved is not None:
        require_same(saved, comparable(recipe), where)


def _require_recipe_of(checkpoint: Path, recipe: Recipe) -> None:
    run_dir = checkpoint.parents[1]
    folder = RunFolder(run_dir)
    if folder.holds_run:
        folder.require_same_run(recipe)
    try:
        manifest = read_manifest(checkpoint)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; choose another step with --resume") from None
    require_same_recipe(manifest.meta, recipe, str(checkpoint))


def _require_step(checkpoints: CheckpointFolder, resume: str, eligible: Sequence[int]) -> None:
    """Raise UsageError for a step that has no checkpoint, or none that the run can resume from."""
    run_dir, steps = checkpoints.run_dir, checkpoints.steps()
    if int(resume) not in steps:
        available = f"choose one of {_listed(steps)}" if steps else "it has none yet"
        raise UsageError(
            f"--resume {resume}: {run_dir} has no checkpoint of that step; {available}, or use --resume auto"
        )
    if int(resume) not in eligible:
        raise UsageError(
            f"--resume {resume}: the run's newest attempt does not descend from that checkpoint in {run_dir}; "
            f"choose one of steps {_listed(eligible)}, or use --resume auto"
        )


def _require_explained(checkpoints: CheckpointFolder, eligible: Sequence[int], written_by: Writers) -> None:
    """Raise UsageError if checkpoints of another run are newer than this run's own: either could be meant."""
    newest = max(eligible, default=-1)
    if newer := [step for step in unexplained_steps(checkpoints, written_by) if step > newest]:
        raise UsageError(_of_no_attempt(checkpoints, newer))


def _require_still_there(checkpoints: CheckpointFolder, finished: int | None) -> None:
    """Raise UsageError if the run had saved checkpoints and all of them are gone."""
    run_dir = checkpoints.run_dir
    if checkpoints.steps():
        return
    saved = [outcome.get("saved") or 0 for outcome in outcomes(run_dir)]
    if newest := max([*saved, finished or 0]):
        raise UsageError(
            f"run_dir={run_dir}: had saved step {newest}, but {checkpoints.root} has no checkpoint any more; "
            "restore it, start afresh with --resume never, or choose another --run-dir"
        )


def _of_no_attempt(checkpoints: CheckpointFolder, steps: Sequence[int]) -> str:
    run_dir = checkpoints.run_dir
    attempts = attempt_dir(run_dir, 0).parent
    if has_begun(run_dir):
        reason, way_out = "they belong to another run", "move them out of the folder"
    else:
        reason, way_out = (
            f"they were copied here or {attempts} was removed",
            f"resume with --resume {steps[-1]}",
        )
    return (
        f"run_dir={run_dir}: the checkpoints of steps {_listed(steps)} were not written by any of its attempts: "
        f"{reason}; {way_out}, start afresh with --resume never, which moves the folder aside, or choose another "
        "--run-dir"
    )


def _on_from_newest(
    folder: RunFolder, checkpoints: CheckpointFolder, recipe: Recipe, eligible: Sequence[int]
) -> Start:
    """Decide whether a run with these checkpoints has steps left. Raises UsageError for a recipe that has fewer steps,
    or changes other keys of a finished run."""
    finished = folder.finished_step()
    newest = max([*eligible, finished or 0])
    if newest > recipe.steps:
        raise UsageError(
            f"steps={recipe.steps}: {folder.path} has already trained {newest} steps; raise steps to train on, go back "
            "with --resume STEP, start afresh with --resume never, or choose another --run-dir"
        )
    if newest < recipe.steps:
        _require_still_there(checkpoints, finished)
        return Start.RESUME
    if changed := changed_keys(comparable(folder.recipe()), comparable(recipe)):
        raise UsageError(
            "\n".join(
                f"{key}={shown(new)}: {folder.path} has trained all its {newest} steps with {shown(old)}; raise steps "
                "to train on with the new value, start afresh with --resume never, or choose another --run-dir"
                for key, old, new in changed
            )
        )
    return Start.RESUME if finished is None else Start.FINISHED


def _require_later_step(recipe: Recipe, resume: str) -> None:
    if int(resume) >= recipe.steps:
        raise UsageError(
            f"--resume {resume}: must be below steps={recipe.steps}; raise steps, or resume from an earlier step"
        )


def _listed(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps)) or "none"
