"""`moe-train run`: a run folder, an attempt in it, and another one if a worker dies and restarts are left.

One worker without restarts runs in this process; everything else goes through `moe_cluster.local`. What is
told to the person at the terminal is told here.
"""

import os
import shlex
import sys
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path

from moe_cluster.contract import (
    ATTEMPT_VARIABLE,
    DONE,
    FAILED,
    PREEMPTED,
    TRAINER_MODULE,
    attempt_dir,
    trainer_arguments,
)
from moe_cluster.first_cause import FirstCause, find_first_cause
from moe_cluster.job import JobSpec
from moe_cluster.local import Outcome, command, run_local
from moe_train.checkpoint.folder import CheckpointFolder
from moe_train.checkpoint.lineage import has_started, newest_attempt
from moe_train.config.check import require_sound
from moe_train.config.load import load_recipe
from moe_train.config.schema import Recipe
from moe_train.errors import UsageError
from moe_train.process import Process
from moe_train.run_folder import RunFolder, attempt_recipe


@dataclass(frozen=True)
class Launch:
    """What `moe-train run` was asked for."""

    recipe: str
    overrides: tuple[str, ...] = ()
    workers: int | None = None
    """None: parallel.data of the recipe, or 1."""
    run_dir: Path | None = None
    """None: runs/NAME."""
    resume: str = "auto"
    """auto, never, or the step of a checkpoint."""
    max_restarts: int = 0
    dry_run: bool = False
    module: str = TRAINER_MODULE
    """What the workers run."""


def launch(asked: Launch, environment: MutableMapping[str, str]) -> int:
    """Run what was asked for; returns an exit code of the contract.

    Raises MoETrainError, before anything starts, for a recipe or a run folder that cannot be used.
    """
    recipe = load_recipe(asked.recipe, asked.overrides)
    workers = asked.workers or recipe.parallel.data or 1
    require_sound(recipe, workers)
    run_dir = asked.run_dir or Path("runs") / recipe.name
    if asked.dry_run:
        return _show_plan(asked, recipe, workers, run_dir, environment)
    with RunFolder(run_dir) as folder:
        if folder.holds_run and asked.resume == "never":
            _say(f"{run_dir} held a run; it is now {folder.move_aside()}")
        elif _has_begun(run_dir):
            folder.require_same_run(recipe)
            finished = folder.finished_step()
            if asked.resume == "auto" and finished is not None and finished >= recipe.steps:
                _say(f"{run_dir} is finished: step {finished} of steps={recipe.steps}; raise steps to go on")
                return DONE
            _require_step(asked.resume, run_dir)
            _tell_other_rates(folder.recipe(), recipe)
        elif asked.resume not in ("auto", "never"):
            raise UsageError(
                f"--resume {asked.resume}: {run_dir} holds no run; use --resume auto or its --run-dir"
            )
        exit_code = _attempts(asked, recipe, workers, folder, environment)
    if exit_code == PREEMPTED:
        _say(f"stopped and saved; go on with: {_resume_line(asked, run_dir)}")
    return exit_code


def _has_begun(run_dir: Path) -> bool:
    """Whether a trainer accepted a recipe in this folder; one that it refused binds nobody."""
    return any(has_started(run_dir, attempt) for attempt in range(1, newest_attempt(run_dir) + 1))


def _require_step(resume: str, run_dir: Path) -> None:
    steps = CheckpointFolder(run_dir).steps()
    if resume.isdecimal() and int(resume) not in steps:
        there = f"has those of steps {', '.join(map(str, steps))}" if steps else "has none"
        raise UsageError(
            f"--resume {resume}: {run_dir} holds no checkpoint of that step; it {there}; name one of them, "
            "or use --resume auto"
        )


def _tell_other_rates(before: Recipe, now: Recipe) -> None:
    schedule = now.optim.schedule
    if schedule.spans_run and now.steps != before.steps:
        _say(
            f"steps={now.steps}: the run had steps={before.steps} until now; the {schedule.kind} schedule now ends at "
            f"{now.steps}, so the learning rate differs from that of a run of {now.steps} steps from the start"
        )


def _attempts(
    asked: Launch, recipe: Recipe, workers: int, folder: RunFolder, environment: MutableMapping[str, str]
) -> int:
    threads = _thread_settings(recipe, workers, environment)
    resume = asked.resume
    for restart in range(asked.max_restarts + 1):
        attempt = folder.new_attempt(recipe)
        arguments = tuple(trainer_arguments(attempt_recipe(folder.path, attempt), folder.path, resume))
        job = JobSpec(arguments, workers, folder.path, attempt, threads, asked.module)
        if workers == 1 and asked.max_restarts == 0 and asked.module == TRAINER_MODULE:
            environment.update(threads)
            outcome = _run_here(recipe, job, resume, environment)
        else:
            outcome = run_local(job, _say)
        if outcome.first_cause is not None:
            _report(outcome.first_cause, environment)
        _show_cursor()
        is_last = restart == asked.max_restarts or outcome.is_stop_requested
        if outcome.exit_code != FAILED or is_last:
            return outcome.exit_code
        _say(f"attempt {attempt} failed; restart {restart + 1} of {asked.max_restarts}, from its last save")
        # What was asked for holds until an attempt began as asked; from then on its own checkpoints count.
        resume = "auto" if has_started(folder.path, attempt) else resume
    raise AssertionError("the last attempt returns")


def _run_here(recipe: Recipe, job: JobSpec, resume: str, environment: MutableMapping[str, str]) -> Outcome:
    """One worker, in this process: the first step comes seconds earlier, and a debugger works."""
    environment[ATTEMPT_VARIABLE] = str(job.attempt)
    try:
        with Process(job.run_dir, job.attempt, rank=0) as process:
            from moe_train import train

            return Outcome(train.run(recipe, job.run_dir, resume, process))
    except SystemExit as end:
        exit_code = end.code if isinstance(end.code, int) else FAILED
    if exit_code in (DONE, PREEMPTED):
        return Outcome(exit_code)
    return Outcome(exit_code, find_first_cause(attempt_dir(job.run_dir, job.attempt), []))


def _thread_settings(recipe: Recipe, workers: int, environment: Mapping[str, str]) -> dict[str, str]:
    """OpenMP's settings for a worker. By default its threads spin at barriers, which on cores that others use too
    makes a step several times slower (docs/log.md); a short spin costs nothing on free ones."""
    spin = environment.get("GOMP_SPINCOUNT", "1000")
    return {"OMP_NUM_THREADS": _threads(recipe, workers, environment), "GOMP_SPINCOUNT": spin}


def _threads(recipe: Recipe, workers: int, environment: Mapping[str, str]) -> str:
    """Threads of a worker, as OpenMP reads them; the recipe goes before what the user has set."""
    shared_out = max(1, len(os.sched_getaffinity(0)) // workers)
    return str(recipe.job.threads or environment.get("OMP_NUM_THREADS") or shared_out)


def _show_plan(
    asked: Launch, recipe: Recipe, workers: int, run_dir: Path, environment: Mapping[str, str]
) -> int:
    attempt = 1 + newest_attempt(run_dir)
    arguments = tuple(trainer_arguments(attempt_recipe(run_dir, attempt), run_dir, asked.resume))
    job = JobSpec(arguments, workers, run_dir, attempt, module=asked.module)
    print(f"run folder  {run_dir}")
    print(f"workers     {workers} with {_threads(recipe, workers, environment)} threads each")
    print(
        f"command     {shlex.join(command(job)) if workers > 1 or asked.max_restarts else 'in this process'}"
    )
    return DONE


def _show_cursor() -> None:
    """A live view hides the cursor; a rank 0 that was killed did not bring it back."""
    if sys.stdout.isatty():
        print("\x1b[?25h", end="", flush=True)


def _report(cause: FirstCause, environment: MutableMapping[str, str]) -> None:
    print(f"moe-train: error: {cause}", file=sys.stderr)
    if environment.get("MOE_TRAIN_DEBUG") and cause.traceback:
        print(cause.traceback, file=sys.stderr)


def _resume_line(asked: Launch, run_dir: Path) -> str:
    line = ["moe-train", "run", asked.recipe, *asked.overrides, "--run-dir", str(run_dir)]
    line += ["--workers", str(asked.workers)] if asked.workers else []
    return shlex.join(line)


def _say(sentence: str) -> None:
    print(f"moe-train: {sentence}", file=sys.stderr, flush=True)
