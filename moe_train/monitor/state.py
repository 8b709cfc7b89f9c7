"""Determines the state of a run in one word, the same for every command and page. Without torch.

The word comes from the run's folder and, if a job of it may still run, from the job's scheduler. An attempt that was
refused before it began does not change the state of the run.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_cluster import records
from moe_cluster.contract import DONE, OUTCOME_FILE, PREEMPTED, USAGE, attempt_dir
from moe_cluster.errors import ClusterError
from moe_cluster.executor import JobStatus, executor
from moe_cluster.records import JobRecord
from moe_train.checkpoint.lineage import has_started, newest_attempt, started_attempts
from moe_train.config.load import load_recipe
from moe_train.config.schema import Recipe
from moe_train.errors import RunError
from moe_train.identity import read_identity
from moe_train.run_folder import FINISHED_FILE, RECIPE_FILE, RunFolder


@dataclass(frozen=True)
class RunState:
    """Describes a run at one moment."""

    word: str
    """queued, running, finished, stopped, failed, cancelled, killed, unknown."""
    recipe: Recipe | None
    """The recipe it was last trained with, or submitted with since."""
    job: JobRecord | None
    """Its last job."""
    status: JobStatus | None
    """Status of the job; None without one, or if the scheduler was not asked or did not answer."""
    said: str
    """The scheduler's message, or why it could not be asked."""
    cause: str
    """Why the newest attempt failed or was refused; empty if it did not or was not."""


def last_recipe(run_dir: Path) -> Path | None:
    """Returns the recipe with which the run was last trained, or submitted since; None if there is neither."""
    recipes = [*(run_dir / records.JOBS_DIR).glob("recipe-*.yaml"), *run_dir.glob(RECIPE_FILE)]
    return max(recipes, key=lambda path: path.stat().st_mtime, default=None)


def read_state(run_dir: Path, *, ask: bool = True, ask_finished: bool = False) -> RunState:
    """Reads a run's folder and, with `ask`, asks its last job's scheduler, with `ask_finished` even if it has finished.

    Raises RecipeError or ClusterError for a recipe or job records that cannot be read.
    """
    path = last_recipe(run_dir)
    recipe = load_recipe(path, passed_over=[]) if path else None
    jobs = records.read(run_dir)
    job = jobs[-1] if jobs else None
    is_over = _is_finished(run_dir, recipe) and not _came_after(run_dir / FINISHED_FILE, job)
    status, said = _status(run_dir, job) if ask and (ask_finished or not is_over) else (None, "")
    newest = newest_attempt(run_dir)
    outcome = _outcome(run_dir, newest)
    cause = str(outcome.get("cause") or "")
    if _is_refusal(run_dir, newest, outcome) and (started := started_attempts(run_dir)):
        outcome, cause = _outcome(run_dir, started[-1]), f"attempt {newest} was refused: {cause}"
    return RunState(_word(run_dir, recipe, job, status, outcome), recipe, job, status, said, cause)


def _word(
    run_dir: Path,
    recipe: Recipe | None,
    job: JobRecord | None,
    status: JobStatus | None,
    outcome: dict[str, Any],
) -> str:
    active = None if status is None or status.state.is_over else status
    if _is_finished(run_dir, recipe) and not (active and _came_after(run_dir / FINISHED_FILE, job)):
        return "finished"
    if active:
        return "queued" if active.state == "pending" else "running"
    if RunFolder(run_dir).is_held():
        return "running"
    if outcome:
        return {DONE: "finished", PREEMPTED: "stopped"}.get(outcome.get("exit_code", 1), "failed")
    if status is not None:
        return {"done": "stopped"}.get(str(status.state), str(status.state))
    if job is None and newest_attempt(run_dir):
        return "killed"
    return "stopped" if job is None and _is_fork(run_dir) else "unknown"


def _is_fork(run_dir: Path) -> bool:
    """Returns whether the run begins at another run's checkpoint, from which it can continue; False if unknown."""
    try:
        identity = read_identity(run_dir)
    except RunError:
        return False
    return identity is not None and identity.forked_from is not None


def _status(run_dir: Path, job: JobRecord | None) -> tuple[JobStatus | None, str]:
    if job is None:
        return None, ""
    try:
        status = executor(job.cluster, job.options).status(job.id, run_dir)
    except ClusterError as error:
        return None, str(error)
    return status, status.reason


def _outcome(run_dir: Path, attempt: int) -> dict[str, Any]:
    """Returns the recorded outcome of an attempt; empty while it runs, or if its launcher was killed."""
    try:
        return dict(json.loads((attempt_dir(run_dir, attempt) / OUTCOME_FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def _is_refusal(run_dir: Path, attempt: int, outcome: dict[str, Any]) -> bool:
    return outcome.get("exit_code") == USAGE and not has_started(run_dir, attempt)


def _came_after(path: Path, job: JobRecord | None) -> bool:
    """Returns whether the job was submitted after the file was written, so that it starts the run afresh."""
    try:
        return job is not None and job.time > path.stat().st_mtime
    except OSError:
        return True  # the job has already removed the file


def _is_finished(run_dir: Path, recipe: Recipe | None) -> bool:
    """Returns whether the run reached the last step of its recipe; False if the file cannot be read."""
    try:
        finished = RunFolder(run_dir).finished_step()
    except RunError:
        return False
    return recipe is not None and finished is not None and finished >= recipe.steps
