"""Runs `moe-train run`: makes an attempt in the run folder, and another one if a worker fails and restarts are left.

One worker without restarts runs in this process; everything else goes through a launcher (`moe_cluster.launcher`).
Read `attempt.py` next: it makes each attempt, and records and reports how it ended.
"""

import shlex
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from moe_cluster.contract import (
    DONE,
    FAILED,
    JOB_VARIABLE,
    PREEMPTED,
    TRAINER_MODULE,
    USAGE,
    trainer_arguments,
)
from moe_cluster.errors import ClusterError
from moe_cluster.job import Attempt
from moe_cluster.launcher import launcher
from moe_cluster.node.elastic import with_threads
from moe_cluster.restarts import Restarts
from moe_cluster.stop import StopRequest, stop_on_signals
from moe_train.attempt import is_refusal, next_attempt, record_outcome, run_here, thread_settings
from moe_train.checkpoint.folder import CheckpointFolder
from moe_train.checkpoint.lineage import has_started, last_number, newest_attempt
from moe_train.config.check import problems, require_sound
from moe_train.config.load import load_recipe
from moe_train.config.notes import start_notes
from moe_train.config.schema import Recipe
from moe_train.errors import MoETrainError
from moe_train.requeue import lost_in_vain, stopped_in_vain
from moe_train.resume_report import report_changes
from moe_train.resumption import Start, has_begun, plan_start
from moe_train.run_folder import RECIPE_FILE, RunFolder, attempt_recipe


@dataclass(frozen=True)
class Launch:
    """Holds the options of `moe-train run`."""

    recipe: str
    overrides: tuple[str, ...] = ()
    workers: int | None = None
    """None: parallel.data of the recipe, or 1."""
    min_workers: int | None = None
    """Start with as few as this while there is no room for `workers`; None: wait for all of them."""
    launcher: str = "local"
    run_dir: Path | None = None
    """None: runs/NAME."""
    resume: str = "auto"
    """auto, never, or the step of a checkpoint."""
    max_restarts: int = 0
    dry_run: bool = False
    module: str = TRAINER_MODULE
    """The module that workers run."""

    def runs_here(self, allowed: Sequence[int]) -> bool:
        """Returns whether the only worker runs in this process: it is local, and nothing would restart it."""
        alone = self.launcher == "local" and tuple(allowed) == (1,)
        return alone and self.max_restarts == 0 and self.module == TRAINER_MODULE


def launch(request: Launch, environment: MutableMapping[str, str]) -> int:
    """Run a recipe to its end; returns an exit code of the contract.

    Raises MoETrainError, before anything starts, for a recipe or a run folder that cannot be used.
    """
    recipe = load_recipe(request.recipe, request.overrides)
    allowed = allowed_workers(recipe, request.workers, request.min_workers)
    run_dir = request.run_dir or Path("runs") / recipe.name
    if request.dry_run:
        return _show_plan(request, recipe, allowed, run_dir, environment)
    # A job's folder exists already, and a job that its cluster restarts ignores --resume (below).
    if JOB_VARIABLE not in environment and plan_start(run_dir, recipe, request.resume) is Start.FINISHED:
        return _finished(run_dir, recipe)
    with RunFolder(run_dir, environment.get(JOB_VARIABLE, "")) as folder:
        if folder.is_of_same_job:  # --resume was applied when the job began
            request = replace(request, resume="auto")
        start = plan_start(run_dir, recipe, request.resume)  # again, now that the folder is locked
        if start is Start.FINISHED:
            return _finished(run_dir, recipe)
        if start is Start.AFRESH:
            _say(f"{run_dir} held a run; it is now {folder.move_aside()}")
        elif start is Start.RESUME and folder.holds_run:
            for change in report_changes(run_dir, recipe, request.resume):
                _say(change)
        if folder.is_of_same_job and (reason := lost_in_vain(folder)):
            _say(reason)
            return FAILED
        for note in start_notes(recipe):
            _say(f"note: {note}")
        exit_code = _attempts_unless_refused(request, recipe, allowed, folder, environment)
    if exit_code == DONE:
        _print_command_to_train_on(request, recipe, run_dir, environment)
    return exit_code if exit_code != PREEMPTED else _stopped(request, run_dir, environment)


def _finished(run_dir: Path, recipe: Recipe) -> int:
    _say(f"{run_dir} is finished: it has trained all steps={recipe.steps}; raise steps to train on")
    return DONE


def allowed_workers(recipe: Recipe, workers: int | None, min_workers: int | None) -> tuple[int, ...]:
    """Returns the numbers of workers that a run may have, ascending; the last is the one it should have.

    Raises RecipeError or LayoutError, with all problems, for a recipe that the last one cannot run.
    """
    most = workers or (recipe.parallel.data or 1) * recipe.parallel.tensor
    require_sound(recipe, most)
    fewer = range(min_workers or most, most)
    return (*(number for number in fewer if not problems(recipe, number)), most)


def _attempts_unless_refused(
    request: Launch,
    recipe: Recipe,
    allowed: Sequence[int],
    folder: RunFolder,
    environment: MutableMapping[str, str],
) -> int:
    """Make attempts; if the first is refused, undo the changes to the folder, except in a job."""
    try:
        exit_code = _attempts(request, recipe, allowed, folder, environment)
    except (MoETrainError, ClusterError) as error:
        refused = error.exit_code == USAGE or not newest_attempt(folder.path)
        if refused and JOB_VARIABLE not in environment:
            folder.take_back(None, has_begun=has_begun(folder.path))
        raise
    newest = newest_attempt(folder.path)
    if is_refusal(exit_code, folder.path, newest, environment):
        folder.take_back(newest, has_begun=has_begun(folder.path))
    return exit_code


def _attempts(
    request: Launch,
    recipe: Recipe,
    allowed: Sequence[int],
    folder: RunFolder,
    environment: MutableMapping[str, str],
) -> int:
    """Make attempts until one ends well, or restarts are used up; returns its exit code."""
    if request.runs_here(allowed):
        attempt = next_attempt(recipe, folder, allowed[0], request.resume, request.module, environment)
        outcome = run_here(recipe, attempt, request.resume, environment)
        return record_outcome(attempt, outcome, environment, _say).exit_code
    chosen = launcher(request.launcher, environment)
    restarts, resume = Restarts(request.max_restarts), request.resume
    with stop_on_signals(_say) as stop:
        while True:
            # Checked before and after a wait for nodes, in which another launcher may have taken over.
            is_mine = not folder.is_taken_over()
            workers = chosen.choose_workers(folder.path, allowed, stop, _say) if is_mine else None
            if folder.is_taken_over():  # not PREEMPTED, which would queue the job a second time
                _say("the cluster has restarted this job elsewhere; this launcher ends")
                return FAILED
            if workers is None:
                return PREEMPTED
            attempt = next_attempt(recipe, folder, workers, resume, request.module, environment)
            outcome = record_outcome(attempt, chosen.run(attempt, stop, _say), environment, _say)
            # --resume holds until an attempt has begun with it; from then on the run's own checkpoints count.
            resume = "auto" if has_started(folder.path, attempt.number) else resume
            if stop.is_requested or not (outcome.resizes or outcome.exit_code == FAILED):
                return outcome.exit_code
            if not outcome.resizes and not _waited(restarts, attempt, stop):
                return outcome.exit_code


def _stopped(request: Launch, run_dir: Path, environment: Mapping[str, str]) -> int:
    """Print the command that resumes a stopped run; returns PREEMPTED, with which a job is queued again, or FAILED if
    that would not help."""
    if JOB_VARIABLE in environment and (reason := stopped_in_vain(run_dir)):
        _say(reason)
        return FAILED
    how = "stopped and saved" if CheckpointFolder(run_dir).steps() else "stopped before anything was saved"
    _say(f"{how}; resume with: {_command(request, run_dir, environment)}")
    return PREEMPTED


def _waited(restarts: Restarts, failed: Attempt, stop: StopRequest) -> bool:
    """Wait until the next attempt is due; returns False if there is none."""
    wait_s = restarts.after_failure(max(CheckpointFolder(failed.run_dir).steps(), default=-1))
    if wait_s is None:
        return False
    soon = f" in {wait_s:.0f} s" if wait_s else ""
    _say(
        f"attempt {failed.number} failed; restart {restarts.in_a_row} of {restarts.limit}{soon}, from the last "
        "checkpoint"
    )
    return not stop.wait(wait_s)


def _show_plan(
    request: Launch, recipe: Recipe, allowed: Sequence[int], run_dir: Path, environment: Mapping[str, str]
) -> int:
    number, workers = 1 + last_number(run_dir), allowed[-1]
    arguments = tuple(trainer_arguments(attempt_recipe(run_dir, number), run_dir, request.resume))
    attempt = Attempt(arguments, workers, run_dir, number, module=request.module)
    counts = str(workers) if len(allowed) == 1 else f"{workers}, or {_listed(allowed[:-1])} on fewer nodes"
    print(f"run folder  {run_dir}")
    here, settings = request.runs_here(allowed), thread_settings(recipe, environment)
    if request.launcher == "local":
        settings = with_threads(settings, workers)
    threads = settings.get("OMP_NUM_THREADS")
    each = "an equal share of the cores of a node"
    if threads:
        each = f"{threads} thread{'s' if threads != '1' else ''} each"
    print(f"workers     {counts} with {each}")
    print(
        f"command     {'in this process' if here else launcher(request.launcher, environment).command(attempt)}"
    )
    return DONE


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _print_command_to_train_on(
    request: Launch, recipe: Recipe, run_dir: Path, environment: Mapping[str, str]
) -> None:
    again = replace(request, recipe=str(run_dir / RECIPE_FILE), overrides=())
    more = f"steps={2 * recipe.steps}"
    print(f"  train on:         {_command(again, run_dir, environment)} {more}", flush=True)


def _command(request: Launch, run_dir: Path, environment: Mapping[str, str]) -> str:
    """Returns the command that resumes a run as it was started."""
    if JOB_VARIABLE in environment:
        return shlex.join(["moe-train", "resume", str(run_dir)])
    line = ["moe-train", "run", request.recipe, *request.overrides, "--run-dir", str(run_dir)]
    if request.workers:
        fewer = request.min_workers is not None and request.min_workers < request.workers
        line += ["--workers", f"{request.min_workers}:{request.workers}" if fewer else str(request.workers)]
    if request.launcher != "local":
        line += ["--launcher", request.launcher]
    if request.max_restarts:
        line += ["--max-restarts", str(request.max_restarts)]
    return shlex.join(line)


def _say(sentence: str) -> None:
    print(f"moe-train: {sentence}", file=sys.stderr, flush=True)
