"""`moe-train sweep`: one recipe with several values of some keys, as many jobs, and a table of what came of them."""

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
from moe_train.config.schema import Recipe
from moe_train.errors import RecipeError, UsageError
from moe_train.jobs.commands import print_runs
from moe_train.jobs.request import add_options, request
from moe_train.jobs.standing import Progress, read_progress
from moe_train.jobs.submission import Submission, hand_over, is_free, of_run
from moe_train.jobs.text import anchored
from moe_train.resumption import Start, options_explained, plan_start

EPILOG = """\
examples:
  moe-train sweep recipes/switch/tiny.yaml moe.num_experts=4,8,16 optim.lr=3e-4,6e-4 --at-once 1 --wait
  moe-train sweep recipes/switch/tiny.yaml seed=0,1,2 --cluster slurm --nodes 2
  moe-train sweep recipes/switch/tiny.yaml seed=0,1,2 --results            the table alone

Commas outside brackets separate values. Every combination is a run of its own in DIR/KEY=VALUE,...; the same command
again submits what has neither finished nor a job that may still run.
"""
POLL_S = 2.0
LONGEST_NAME = 150


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """`sweep`; returns an exit code. Raises MoETrainError or ClusterError with nothing submitted."""
    options = _parse(arguments)
    base = _base(options.recipe, [word for word in options.overrides if len(values(word)) == 1])
    sweep_dir = (options.dir or Path("runs") / f"{base.name}-sweep").absolute()
    runs = {
        sweep_dir / name: anchored(load_recipe(options.recipe, overrides))
        for name, overrides in combinations(options.overrides)
    }
    if options.results:
        return _results(list(runs), sweep_dir, options.json)
    asked = request(options, read_sites(sites_file(environment)))
    found = [of_run(run_dir, recipe) for run_dir, recipe in runs.items()]
    waiting = [each for each in found if not _is_finished(each) and is_free(each)]
    specs = [asked.spec(each.recipe, each.recipe_file, each.run_dir, "auto", ()) for each in waiting]
    scripts = [asked.executor.render(spec) for spec in specs]
    if options.dry_run:
        print(
            "".join(f"# {spec.run_dir}\n{script}" for spec, script in zip(specs, scripts, strict=True)),
            end="",
        )
        return DONE
    ids = hand_over(asked, waiting, specs, options.at_once) if specs else []
    print(f"submitted {len(ids)} of {len(runs)} runs; {sweep_dir}")
    if options.wait:
        _wait(list(runs))
        return _results(list(runs), sweep_dir, options.json)
    print(f"  the table:  moe-train list {sweep_dir}")
    return DONE


def _base(recipe: str, overrides: Sequence[str]) -> Recipe:
    """The recipe with the overrides that all runs share. Raises RecipeError, which says how several values are written
    if one has brackets that its key does not take."""
    try:
        return load_recipe(recipe, overrides)
    except RecipeError as error:
        for key, _, text in (word.partition("=") for word in overrides):
            if text[:1] in ("[", "{", "(") and str(error).startswith(f"{key}="):
                inside = text.strip("[]{}()").replace(" ", "")
                raise RecipeError(
                    f"{error}\n  (a sweep takes several values with commas and without brackets: {key}={inside})"
                ) from None
        raise


def values(override: str) -> list[str]:
    """The overrides that `key=a,b,c` stands for; commas in brackets, braces or quotes belong to a value."""
    key, equals, text = override.partition("=")
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'" and (depth or not parts[-1]):  # later it is an apostrophe
            quote = letter
        else:
            depth += (letter in "[{(") - (letter in ")}]")
        if letter == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return [f"{key}{equals}{part}" for part in parts]


def combinations(overrides: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
    """Name and overrides of every run; the name has what varies. Raises UsageError if nothing does, or too much."""
    choices = [values(word) for word in overrides]
    if all(len(choice) == 1 for choice in choices):
        raise UsageError("sweep: no key has several values; write them with commas, e.g. seed=0,1,2")
    found = []
    for chosen in itertools.product(*choices):
        varying = [word for word, choice in zip(chosen, choices, strict=True) if len(choice) > 1]
        name = ",".join(re.sub(r"[^\w.=+-]", "_", word) for word in varying)
        if len(name) > LONGEST_NAME:
            raise UsageError(
                f"sweep: {name}: is no name for a folder; vary fewer keys, or use shorter values"
            )
        found.append((name, chosen))
    if len({name for name, _ in found}) < len(found):
        raise UsageError("sweep: two runs would share a folder; give no value twice")
    return found


def _is_finished(submission: Submission) -> bool:
    """Whether the run came to the last step of this recipe. Raises UsageError if the folder has another run, or one
    that this recipe does not go on with."""
    with options_explained():
        return plan_start(submission.run_dir, submission.recipe, "auto") is Start.FINISHED


def _wait(runs: Sequence[Path]) -> None:
    """Return once all are over. They are waited for in turn: a scheduler answers one question in POLL_S."""
    told = ""
    for run_dir in runs:
        while (progress := read_progress(run_dir)).may_run:
            if progress.is_unanswered and progress.said != told:
                told = progress.said
                print(f"{run_dir.name}: {told}; waiting goes on", file=sys.stderr)
            time.sleep(POLL_S)


def _results(runs: Sequence[Path], folder: Path, as_json: bool) -> int:
    """The table, the best validation loss first; FAILED if a run did not finish or was never submitted."""
    missing = [run_dir.name for run_dir in runs if not run_dir.exists()]
    found = [read_progress(run_dir) for run_dir in runs if run_dir.exists()]
    found.sort(key=_rank)
    print_runs(found, folder, as_json=as_json)
    if missing:
        print(f"{folder}: not submitted yet: {', '.join(missing)}", file=sys.stderr)
    return DONE if not missing and all(progress.state == "finished" for progress in found) else FAILED


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
        "--at-once", type=positive, metavar="N", help="so many jobs at a time (default: as many as fit)"
    )
    parser.add_argument("--wait", action="store_true", help="wait for all of them, and print the table")
    parser.add_argument("--results", action="store_true", help="print the table; submit nothing")
    parser.add_argument("--json", action="store_true", help="with --wait or --results: a JSON list")
    add_options(parser)
    return parse_with_overrides(parser, arguments)
