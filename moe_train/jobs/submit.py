"""Runs `moe-train submit` and `moe-train resume`, which check everything that can be checked before a job is queued.

What the job will read is written into the run's folder first, resolved: a file that its user edits later changes
nothing that is queued. Answers without importing torch.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from moe_cluster import records
from moe_cluster.contract import DONE
from moe_cluster.sites import read_sites, sites_file
from moe_train.arguments import Parser, add_overrides, folder, parse_with_overrides, resume_from
from moe_train.config.load import load_recipe
from moe_train.config.notes import start_notes
from moe_train.config.schema import Recipe
from moe_train.errors import UsageError
from moe_train.jobs.request import add_options, request
from moe_train.jobs.standing import run_folder
from moe_train.jobs.submission import of_run, require_free, submit_runs
from moe_train.jobs.text import anchored
from moe_train.monitor.state import last_recipe
from moe_train.resume_report import report_changes
from moe_train.resumption import Start, options_explained, plan_start, workers_until_now
from moe_train.run_folder import RECIPE_FILE, RunFolder

SUBMIT_EPILOG = """\
examples:
  moe-train submit recipes/switch/tiny.yaml                                  in the background of this machine
  moe-train submit recipes/glam/1.7b_64e.yaml --cluster slurm --nodes 8 --workers-per-node 8 --gpus-per-worker 1 \\
      --time-limit 12h --option partition=gpu --dry-run
  moe-train submit recipes/thor/iwslt.yaml --cluster ray --address http://head:8265 --nodes 2:4

The run's folder must be visible to all nodes. Defaults for a user or site: ~/.config/moe-train/cluster.yaml.
"""
RESUME_EPILOG = """\
examples:
  moe-train resume runs/glam                    with the options of its last job
  moe-train resume runs/glam --nodes 4 steps=200000
"""


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run `submit`; returns an exit code. Raises MoETrainError or ClusterError if nothing was submitted."""
    parser = _parser("submit", "submit a run to a cluster", SUBMIT_EPILOG)
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, or a recipe that comes with moe-train")
    add_overrides(parser, "override a key of the recipe, e.g. optim.lr=1e-3")
    parser.add_argument(
        "--run-dir", type=folder, metavar="DIR", help="folder of the run (default: runs/NAME)"
    )
    parser.add_argument(
        "--resume",
        type=resume_from,
        default="auto",
        metavar="auto|never|STEP",
        help="as for run (default: auto)",
    )
    options = parse_with_overrides(parser, arguments)
    recipe = load_recipe(options.recipe, options.overrides)
    run_dir = (options.run_dir or Path("runs") / recipe.name).absolute()
    return _submit(options, recipe, run_dir, options.resume, environment)


def resume(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run `resume`: submit a run again, by default with the options of its last job."""
    parser = _parser("resume", "submit a run again, to resume from its last checkpoint", RESUME_EPILOG)
    parser.add_argument("run", metavar="RUN", help="a run folder, or its name below runs/")
    add_overrides(parser, "override a key of the run's recipe, e.g. steps=200000")
    options = parse_with_overrides(parser, arguments)
    run_dir = run_folder(options.run)
    recipe = load_recipe(last_recipe(run_dir) or run_dir / RECIPE_FILE, options.overrides)
    with options_explained():
        return _submit(options, recipe, run_dir, "auto", environment)


def _submit(
    options: argparse.Namespace, recipe: Recipe, run_dir: Path, resume: str, environment: Mapping[str, str]
) -> int:
    submission = of_run(run_dir, anchored(recipe))
    job = request(
        options, read_sites(sites_file(environment)), submission.last, workers=workers_until_now(run_dir)
    )
    after = [_job_of(name, job.cluster) for name in options.after]
    spec = job.spec(submission.recipe, submission.recipe_file, run_dir, resume, after)
    script = job.executor.render(spec)  # raises for what the backend cannot do, before anything is written
    sizes = job.resources
    notes = [f"note: {note}" for note in start_notes(recipe, sizes.workers, sizes.workers_per_node)]
    if options.dry_run:
        _say(notes)
        print(script, end="")
        return DONE
    require_free(submission)
    start = plan_start(run_dir, recipe, resume)
    if start is Start.FINISHED:
        raise UsageError(f"steps={recipe.steps}: {run_dir} has already finished; raise steps to train on")
    is_resumed = start is Start.RESUME and RunFolder(run_dir).holds_run
    _say([*(report_changes(run_dir, recipe, resume) if is_resumed else ()), *notes])
    (job_id,) = submit_runs(job, [submission], [spec])
    print(f"submitted {job.cluster}:{job_id}; {run_dir}")
    print(f"  state:   moe-train status {run_dir}")
    print(f"  output:  moe-train logs -f {run_dir}")
    print(f"  cancel:  moe-train cancel {run_dir}")
    return DONE


def _say(sentences: Sequence[str]) -> None:
    for sentence in sentences:
        print(f"moe-train: {sentence}", file=sys.stderr)


def _job_of(name: str, cluster: str) -> str:
    """Returns the job id that `--after NAME` means: that of a run's last job, or NAME itself."""
    for run_dir in (Path(name), Path("runs", name)):
        if jobs := records.read(run_dir):
            if jobs[-1].cluster != cluster:
                raise UsageError(
                    f"--after {name}: must name a job of --cluster {cluster}, and its last job is {jobs[-1]}; submit "
                    "to that cluster, or name another run"
                )
            return jobs[-1].id
    return name


def _parser(command: str, what: str, epilog: str) -> argparse.ArgumentParser:
    parser = Parser(
        f"moe-train {command}",
        description=f"{what[0].upper()}{what[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser)
    parser.add_argument(
        "--after",
        action="append",
        default=[],
        metavar="RUN",
        help="start after that run's job has succeeded; may be repeated",
    )
    return parser
