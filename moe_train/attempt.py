"""Makes one attempt at a run: its folder and command, its only worker in this process, the record of its outcome.

`launch.py` decides whether and with how many workers there is an attempt, and whether another one follows.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path

from moe_cluster.atomic import replace_text
from moe_cluster.contract import (
    ATTEMPT_VARIABLE,
    DONE,
    FAILED,
    JOB_VARIABLE,
    OUTCOME_FILE,
    PREEMPTED,
    USAGE,
    attempt_dir,
    trainer_arguments,
)
from moe_cluster.job import Attempt
from moe_cluster.launcher import Outcome
from moe_cluster.watch.first_cause import FirstCause, find_first_cause
from moe_train.checkpoint.folder import CheckpointFolder
from moe_train.checkpoint.lineage import has_started, last_number
from moe_train.config.schema import Recipe
from moe_train.imports import without_collecting
from moe_train.run_folder import RunFolder, attempt_recipe
from moe_train.worker.process import Process


def next_attempt(
    recipe: Recipe, folder: RunFolder, workers: int, resume: str, module: str, environment: Mapping[str, str]
) -> Attempt:
    """Make the folder of the next attempt; returns what its workers run. Raises RunError."""
    number = folder.new_attempt(recipe, last_number(folder.path))
    arguments = tuple(trainer_arguments(attempt_recipe(folder.path, number), folder.path, resume))
    threads = thread_settings(recipe, environment)
    return Attempt(arguments, workers, folder.path, number, threads, module, recipe.job.timeout_s)


def run_here(recipe: Recipe, attempt: Attempt, resume: str, environment: MutableMapping[str, str]) -> Outcome:
    """Run the only worker in this process: the first step comes seconds earlier, and a debugger works."""
    environment.update(attempt.environment)
    environment[ATTEMPT_VARIABLE] = str(attempt.number)
    try:
        with Process(attempt.run_dir, attempt.number, rank=0) as process:
            with without_collecting():
                from moe_train import train

            return Outcome(train.run(recipe, attempt.run_dir, resume, process))
    except SystemExit as end:
        exit_code = end.code if isinstance(end.code, int) else FAILED
    if exit_code in (DONE, PREEMPTED):
        return Outcome(exit_code)
    return Outcome(exit_code, find_first_cause(attempt_dir(attempt.run_dir, attempt.number), []))


def record_outcome(
    attempt: Attempt, outcome: Outcome, environment: Mapping[str, str], say: Callable[[str], None]
) -> Outcome:
    """Write the outcome to the attempt's folder, print the cause of a failure, and return the outcome."""
    cause = outcome.first_cause
    content = {
        "exit_code": outcome.exit_code,
        "cause": None if cause is None else str(cause),
        "rank": None if cause is None else cause.rank,
        "host": None if cause is None else cause.host,
        "step": None if cause is None else cause.step,
        "saved": max(CheckpointFolder(attempt.run_dir).steps(), default=None),
        "time": time.time(),
    }
    try:
        replace_text(attempt_dir(attempt.run_dir, attempt.number) / OUTCOME_FILE, json.dumps(content) + "\n")
    except OSError as error:
        say(
            f"{OUTCOME_FILE} could not be written ({error.strerror}); `moe-train status` will not show this outcome"
        )
    if cause is not None:
        refused = is_refusal(outcome.exit_code, attempt.run_dir, attempt.number, environment)
        _report(cause, environment, refused)
    if sys.stdout.isatty():  # a live view hides the cursor, and a killed rank 0 did not restore it
        print("\x1b[?25h", end="", flush=True)
    return outcome


def _report(cause: FirstCause, environment: Mapping[str, str], refused: bool) -> None:
    print(f"moe-train: error: {cause.sentence if refused else cause}", file=sys.stderr)
    if environment.get("MOE_TRAIN_DEBUG") and cause.traceback:
        print(cause.traceback, file=sys.stderr)


def is_refusal(exit_code: int, run_dir: Path, attempt: int, environment: Mapping[str, str]) -> bool:
    """Returns whether an attempt ended with a usage error before it began."""
    return exit_code == USAGE and not has_started(run_dir, attempt) and JOB_VARIABLE not in environment


def thread_settings(recipe: Recipe, environment: Mapping[str, str]) -> dict[str, str]:
    """Returns OpenMP's settings for a worker. Unless the recipe or the user sets the number of threads, the worker's
    node does, which knows its cores. By default threads spin at barriers, which makes a step several times slower on
    shared cores (notes/log.md); a short spin costs nothing on free ones."""
    spin = {"GOMP_SPINCOUNT": environment.get("GOMP_SPINCOUNT", "1000")}
    threads = recipe.job.threads or environment.get("OMP_NUM_THREADS")
    return spin | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
