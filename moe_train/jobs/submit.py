"""`moe-train submit` and `moe-train resume`: a run handed to a cluster, once everything that can be checked here is.

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
from moe_train.config.schema import Recipe
from moe_train.config.timing import timing_notes
from moe_train.errors import UsageError
from moe_train.jobs.request import add_options, request
from moe_train.jobs.standing import run_folder
from moe_train.jobs.submission import hand_over, of_run, require_free
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

The run's folder must be one that all nodes see. Defaults of a person or site: ~/.config/moe-train/cluster.yaml.
"""
RESUME_EPILOG = """\
examples:
  moe-train resume runs/glam                    as it was submitted last
  moe-train resume runs/glam --nodes 4 steps=200000
"""


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """`submit`; returns an exit code. Raises MoETrainError or ClusterError with nothing submitted."""
    parser = _parser("submit", "hand a run to a cluster", SUBMIT_EPILOG)
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
    return _hand_over(options, recipe, run_dir, options.resume, environment)


def resume(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """`resume`: the same for a run that was submitted before, where nothing else is said as it was then."""
    parser = _parser(
        "resume", "hand a run to a cluster again, to go on from its last checkpoint", RESUME_EPILOG
    )
    parser.add_argument("run", metavar="RUN", help="a run folder, or its name below runs/")
    add_overrides(parser, "override a key of the run's recipe, e.g. steps=200000")
    options = parse_with_overrides(parser, arguments)
    run_dir = run_folder(options.run)
    recipe = load_recipe(last_recipe(run_dir) or run_dir / RECIPE_FILE, options.overrides)
    with options_explained():
        return _hand_over(options, recipe, run_dir, "auto", environment)


def _hand_over(
    options: argparse.Namespace, recipe: Recipe, run_dir: Path, resume: str, environment: Mapping[str, str]
) -> int:
    submission = of_run(run_dir, anchored(recipe))
    asked = request(
        options, read_sites(sites_file(environment)), submission.last, workers=workers_until_now(run_dir)
    )
    after = [_job_of(name, asked.cluster) for name in options.after]
    spec = asked.spec(submission.recipe, submission.recipe_file, run_dir, resume, after)
    script = asked.executor.render(spec)  # refuses what the backend cannot do, before anything is written
    if options.dry_run:
        print(script, end="")
        return DONE
    require_free(submission)
    start = plan_start(run_dir, recipe, resume)
    if start is Start.FINISHED:
        raise UsageError(f"steps={recipe.steps}: {run_dir} is finished at that step; raise steps to train on")
    is_resumed = start is Start.RESUME and RunFolder(run_dir).holds_run
    for sentence in [
        *(report_changes(run_dir, recipe, resume) if is_resumed else ()),
        *(f"note: {note}" for note in timing_notes(recipe)),
    ]:
        print(f"moe-train: {sentence}", file=sys.stderr)
    (job_id,) = hand_over(asked, [submission], [spec])
    print(f"submitted {asked.cluster}:{job_id}; {run_dir}")
    print(f"  how it stands:  moe-train status {run_dir}")
    print(f"  what it says:   moe-train logs -f {run_dir}")
    print(f"  end it:         moe-train cancel {run_dir}")
    return DONE


def _job_of(name: str, cluster: str) -> str:
    """The id behind `--after NAME`: a run's last job, or an id as it is."""
    for run_dir in (Path(name), Path("runs", name)):
        if found := records.read(run_dir):
            if found[-1].cluster != cluster:
                raise UsageError(
                    f"--after {name}: its last job is {found[-1]}, and a job of --cluster {cluster} cannot wait for it"
                )
            return found[-1].id
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
        help="start once the job of that run has ended well",
    )
    return parser
