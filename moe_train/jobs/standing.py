"""Reads the state of a run: its training from its folder, its job from the scheduler. Imports no torch."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_cluster import records
from moe_cluster.atomic import has_no_room
from moe_cluster.contract import attempt_dir
from moe_cluster.executor import JobStatus
from moe_cluster.node.bad_nodes import left_out
from moe_cluster.records import JobRecord
from moe_cluster.watch.findings import recorded
from moe_train.checkpoint.folder import CheckpointFolder
from moe_train.checkpoint.lineage import count_attempts, newest_attempt
from moe_train.config.schema import Recipe
from moe_train.errors import RunError
from moe_train.monitor.rows import METRICS_FILE, Row, current_rows, read_rows
from moe_train.monitor.run import find_run
from moe_train.monitor.state import read_state
from moe_train.run_folder import RECIPE_FILE

MARKS = (RECIPE_FILE, records.FILE_NAME)
"""Files that mark the folder of a run that was started or submitted."""


@dataclass(frozen=True)
class Progress:
    """Describes a run at one moment."""

    run_dir: Path
    state: str
    """One word: see monitor/state.py."""
    step: int | None
    """The last step in the run's metrics; None before the first row."""
    steps: int | None
    loss: float | None
    validation_loss: float | None
    tokens_per_second: float | None
    saved_step: int | None
    attempts: int
    job: JobRecord | None
    status: JobStatus | None
    """The job's status; None without a job, or if the scheduler did not answer."""
    said: str
    """Why it failed or waits, as its workers or its scheduler report it."""
    since: float | None
    """When the last row was written, in seconds since 1970."""
    left_s: float | None
    """Seconds to the last step at the speed of the last row's window, while it runs."""

    @property
    def may_run(self) -> bool:
        """Returns whether it runs or is queued, or its scheduler did not answer."""
        return self.is_unanswered or self.state in ("queued", "running")

    @property
    def is_unanswered(self) -> bool:
        """Returns whether its state depends on its scheduler, which was not asked or did not answer."""
        return self.job is not None and self.status is None and self.state != "finished"

    def as_dict(self) -> dict[str, Any]:
        """Returns what `--json` prints."""
        own = {key: value for key, value in vars(self).items() if key not in ("run_dir", "job", "status")}
        job = {"cluster": self.job.cluster, "id": self.job.id} if self.job else None
        scheduler = {"state": str(self.status.state), "reason": self.status.reason} if self.status else None
        nodes = list(self.status.nodes) if self.status else []
        return {"run_dir": str(self.run_dir), **own, "job": job, "scheduler": scheduler, "nodes": nodes}


def run_folder(name: str) -> Path:
    """Returns the folder of a run that was started or submitted. Raises UsageError if there is none."""
    return find_run(name, MARKS).absolute()


def read_progress(run_dir: Path, *, ask: bool = True, ask_finished: bool = False) -> Progress:
    """Read a run's folder and, with `ask`, ask the scheduler of its last job; with `ask_finished` even if the run is
    finished. Raises MoETrainError or ClusterError for a folder that cannot be read."""
    try:
        return _read(run_dir, ask, ask_finished)
    except OSError as error:
        raise RunError.unreadable(run_dir, error) from None


def _read(run_dir: Path, ask: bool, ask_finished: bool) -> Progress:
    state = read_state(run_dir, ask=ask, ask_finished=ask_finished)
    recipe = state.recipe
    rows = current_rows(read_rows(run_dir / METRICS_FILE))
    training = [row for row in rows if "loss" in row]
    validation = [row["validation_loss"] for row in rows if "validation_loss" in row]
    last = training[-1] if training else {}
    step = last.get("step", 0 if rows else None)
    return Progress(
        run_dir=run_dir,
        state=state.word,
        step=step,
        steps=recipe.steps if recipe else None,
        loss=last.get("loss"),
        validation_loss=validation[-1] if validation else None,
        tokens_per_second=last.get("tokens_per_second"),
        saved_step=max(CheckpointFolder(run_dir).steps(), default=None),
        attempts=count_attempts(run_dir),
        job=state.job,
        status=state.status,
        said=(state.cause if state.word != "queued" else "")
        or _no_room(run_dir, state.word)
        or _findings(run_dir, state.word)  # before the scheduler's message, which a healthy job may have too
        or state.said,
        since=(run_dir / METRICS_FILE).stat().st_mtime if rows else None,
        left_s=_left(recipe, last) if state.word == "running" else None,
    )


def _findings(run_dir: Path, state: str) -> str:
    """Returns what its launcher reports of the workers and nodes of a running run."""
    if state != "running":
        return ""
    findings = recorded(attempt_dir(run_dir, newest_attempt(run_dir)))
    return "; ".join([*left_out(run_dir).sentences, *(finding["text"] for finding in findings)])


def _no_room(run_dir: Path, state: str) -> str:
    """Returns the message for a failed run whose disk is full, so that it could not record the reason."""
    if state != "failed" or not has_no_room(run_dir):
        return ""
    return (
        f"the disk of {run_dir} is full; its checkpoints are intact: free space, then `moe-train resume` it"
    )


def _left(recipe: Recipe | None, last: Row) -> float | None:
    if recipe is None or not last or not last.get("tokens_per_second"):
        return None
    tokens = recipe.data.global_batch * recipe.data.sequence_length
    return (recipe.steps - last["step"]) * tokens / last["tokens_per_second"]


def age(since: float) -> str:
    """Returns how long ago `since` was, such as "5 min ago"."""
    seconds = max(0, int(time.time() - since))
    if seconds < 120:
        return f"{seconds} s ago"
    return f"{seconds // 60} min ago" if seconds < 7200 else f"{seconds // 3600} h ago"
