"""Runs `moe-train sweep`: submits a job for each combination of values of some keys, and prints a table of results."""

import argparse
import itertools
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from moe_cluster.contract import DONE, FAILED
from moe_cluster.sites import read_sites, sites_file
from moe_train.arguments import Parser, add_overrides, folder, parse_with_overrides, positive
from moe_train.config.load import load_recipe
from moe_train.config.notes import start_notes
from moe_train.config.schema import Recipe
from moe_train.errors import RecipeError, UsageError
from moe_train.jobs.commands import print_runs
from moe_train.jobs.request import Request, add_options, request
from moe_train.jobs.standing import Progress, read_progress
from moe_train.jobs.submission import Submission, is_free, of_run, submit_runs
from moe_train.jobs.text import anchored
from moe_train.resumption import Start, options_explained, plan_start

EPILOG = """\
examples:
  moe-train sweep recipes/switch/tiny.yaml moe.num_experts=4,8,16 optim.lr=3e-4,6e-4 --at-once 1 --wait
  moe-train sweep recipes/switch/tiny.yaml seed=0,1,2 --cluster slurm --nodes 2
  moe-train sweep recipes/switch/tiny.yaml seed=0,1,2 --results            print the table only

Commas outside brackets separate values. Every combination is a run of its own in DIR/KEY=VALUE,...; the same command
again submits the runs that are neither finished nor in a job that may still run.
"""
POLL_S = 2.0
LONGEST_NAME = 150


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run `sweep`; returns an exit code. Raises MoETrainError or ClusterError if not all runs were submitted."""
    options = _parse(arguments)
    base = _base(options.recipe, [word for word in options.overrides if len(values(word)) == 1])
    sweep_dir = (options.dir or Path("runs") / f"{base.name}-sweep").absolute()
    runs = {
        sweep_dir / name: anchored(load_recipe(options.recipe, overrides))
        for name, overrides in combinations(options.overrides)
    }
    if options.results:
        return _results(list(runs), sweep_dir, options.json)
    job = request(options, read_sites(sites_file(environment)))
    submissions = [of_run(run_dir, recipe) for run_dir, recipe in runs.items()]
    waiting = [each for each in submissions if not _is_finished(each) and is_free(each)]
    specs = [job.spec(each.recipe, each.recipe_file, each.run_dir, "auto", ()) for each in waiting]
    scripts = [job.executor.render(spec) for spec in specs]
    _print_notes(job, waiting)
    if options.dry_run:
        print(
            "".join(f"# {spec.run_dir}\n{script}" for spec, script in zip(specs, scripts, strict=True)),
            end="",
        )
        return DONE
    ids = submit_runs(job, waiting, specs, options.at_once) if specs else []
    print(f"submitted {len(ids)} of {len(runs)} runs; {sweep_dir}")
    if options.wait:
        _wait(list(runs))
        return _results(list(runs), sweep_dir, options.json)
    print(f"  results:  moe-train list {sweep_dir}")
    return DONE


def _print_notes(job: Request, submissions: Sequence[Submission]) -> None:
    """Print what `submit` notes of each run, once where it notes the same of several."""
    runs_with: dict[str, list[str]] = {}
    for each in submissions:
        for note in start_notes(each.recipe, job.resources.workers, job.resources.workers_per_node):
            runs_with.setdefault(note, []).append(each.run_dir.name)
    for note, names in runs_with.items():
        which = "" if len(names) == len(submissions) else f" ({'; '.join(names)})"
        print(f"moe-train: note: {note}{which}", file=sys.stderr)


def _base(recipe: str, overrides: Sequence[str]) -> Recipe:
    """Load the recipe with the overrides that all runs share. Raises RecipeError, which explains how to write several
    values if one has brackets that its key does not accept."""
    try:
        return load_recipe(recipe, overrides)
    except RecipeError as error:
        for key, _, text in (word.partition("=") for word in overrides):
            if text[:1] in ("[", "{", "(") and str(error).startswith(f"{key}="):
                inside = text.strip("[]{}()").replace(" ", "")
                raise RecipeError(
                    f"{error}\n  (write several values with commas and without brackets: {key}={inside})"
                ) from None
        raise


def values(override: str) -> list[str]:
    """Split `key=a,b,c` into overrides; commas in brackets, braces or quotes belong to a value."""
    key, equals, text = override.partition("=")
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'" and (depth or not parts[-1]):  # inside a value it is an apostrophe
            quote = letter
        else:
            depth += (letter in "[{(") - (letter in ")}]")
        if letter == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return [f"{key}{equals}{part}" for part in parts]


def combinations(overrides: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
    """Returns name and overrides of every run; the name has the varying keys. Raises UsageError if no key varies, or
    the names are too long or not unique."""
    choices = [values(word) for word in overrides]
    if all(len(choice) == 1 for choice in choices):
        raise UsageError("sweep: no key has several values; write them with commas, e.g. seed=0,1,2")
    runs = []
    for combination in itertools.product(*choices):
        varying = [word for word, choice in zip(combination, choices, strict=True) if len(choice) > 1]
        name = ",".join(re.sub(r"[^\w.=+-]", "_", word) for word in varying)
        if len(name) > LONGEST_NAME:
            raise UsageError(
                f"sweep: {name}: is not a valid folder name, it has more than {LONGEST_NAME} characters; vary fewer "
                "keys, or use shorter values"
            )
        runs.append((name, combination))
    if len({name for name, _ in runs}) < len(runs):
        raise UsageError("sweep: two runs would share a folder; give every value only once")
    return runs


def _is_finished(submission: Submission) -> bool:
    """Returns whether the run has finished the recipe's last step.

    Raises UsageError if the folder has another run, or one that this recipe cannot resume.
    """
    with options_explained():
        return plan_start(submission.run_dir, submission.recipe, "auto") is Start.FINISHED


def _wait(runs: Sequence[Path]) -> None:
    """Wait until all runs have ended, one after the other: a scheduler gets one request in POLL_S."""
    last_message = ""
    for run_dir in runs:
        while (progress := read_progress(run_dir)).may_run:
            if progress.is_unanswered and progress.said != last_message:
                last_message = progress.said
                print(f"{run_dir.name}: {last_message}; still waiting", file=sys.stderr)
            time.sleep(POLL_S)


def _results(runs: Sequence[Path], folder: Path, as_json: bool) -> int:
    """Print the table, the best validation loss first; returns FAILED if a run is unfinished or not submitted."""
    missing = [run_dir.name for run_dir in runs if not run_dir.exists()]
    results = [read_progress(run_dir) for run_dir in runs if run_dir.exists()]
    results.sort(key=_rank)
    print_runs(results, folder, as_json=as_json)
    if missing:
        print(f"{folder}: not submitted yet: {', '.join(missing)}", file=sys.stderr)
    return DONE if not missing and all(progress.state == "finished" for progress in results) else FAILED


def _rank(progress: Progress) -> tuple[bool, float]:
    loss = progress.validation_loss
    return progress.state != "finished" or loss is None, loss or 0.0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        "moe-train sweep",
        description="Submit one recipe with several values of some keys.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, or a recipe that comes with moe-train")
    add_overrides(parser, "override a key of the recipe; several values are written with commas: seed=0,1,2")
    parser.add_argument("--dir", type=folder, help="folder of the runs (default: runs/NAME-sweep)")
    parser.add_argument(
        "--at-once", type=positive, metavar="N", help="maximum number of concurrent jobs (default: no limit)"
    )
    parser.add_argument("--wait", action="store_true", help="wait for all jobs, then print the table")
    parser.add_argument("--results", action="store_true", help="print the table; submit nothing")
    parser.add_argument("--json", action="store_true", help="with --wait or --results: print a JSON list")
    add_options(parser)
    return parse_with_overrides(parser, arguments)
