"""Runs `moe-train fork`: makes a run that begins at a checkpoint of another, with its recipe and tokenizer.

Imports no torch. The new folder is filled under a temporary name and renamed when it is complete. It gets its own id,
so neither run mistakes the other's checkpoints or jobs for its own.
"""

import argparse
import secrets
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from moe_cluster.contract import DONE
from moe_cluster.place import Place
from moe_train.arguments import Parser, count, folder
from moe_train.checkpoint.folder import CheckpointFolder, write_durably
from moe_train.checkpoint.lineage import eligible_steps, newest_attempt
from moe_train.checkpoint.manifest import read_manifest
from moe_train.checkpoint.verify import verify
from moe_train.errors import CheckpointError, RunError, UsageError
from moe_train.identity import Identity, Origin, new_id
from moe_train.made import Made
from moe_train.monitor.run import find_run
from moe_train.resumption import options_explained, require_reachable, workers_until_now
from moe_train.run_folder import RECIPE_FILE, RunFolder

TOKENIZER_FILE = "tokenizer.json"
EPILOG = """\
examples:
  moe-train fork runs/switch-tiny runs/lower-rate               from the newest valid checkpoint
  moe-train fork runs/switch-tiny runs/lower-rate --step 100
  moe-train run runs/lower-rate/recipe.yaml --run-dir runs/lower-rate optim.lr=1e-4

The new run's metrics begin at the step of the fork. RUN is not changed.
"""


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code. Raises MoETrainError, after removing the new folder."""
    parser = Parser(
        "moe-train fork",
        description="Make a new run that begins at a checkpoint of another.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="a run folder, or its name below runs/")
    parser.add_argument("new", metavar="NEW", type=folder, help="folder of the new run; must not exist yet")
    parser.add_argument(
        "--step", type=count, metavar="N", help="step of the checkpoint (default: the newest valid one)"
    )
    options = parser.parse_args(arguments)
    run_dir = find_run(options.run)
    _require_new(options.new, run_dir)
    with options_explained():
        recipe, workers = RunFolder(run_dir).recipe(), workers_until_now(run_dir)
    step = _chosen(CheckpointFolder(run_dir), options.step)
    _fill(run_dir, options.new, step, workers)
    print(f"{options.new} begins at step {step} of {run_dir}")
    line = ["moe-train", "run", str(options.new / RECIPE_FILE), "--run-dir", str(options.new)]
    if workers > 1:
        line += ["--workers", str(workers)]
    more = f" steps={2 * step}" if step >= recipe.steps else ""
    print(f"  train it:  {shlex.join(line)}{more}")
    return DONE


def _require_new(new: Path, run_dir: Path) -> None:
    if new.exists() and not (new.is_dir() and not any(new.iterdir())):
        raise UsageError(f"NEW={new}: exists already; name a new or an empty folder")
    require_reachable(new, "NEW")
    if new.resolve().is_relative_to(run_dir.resolve()):
        raise UsageError(f"NEW={new}: must not be inside {run_dir}; name a folder beside it")


def _chosen(checkpoints: CheckpointFolder, wanted: int | None) -> int:
    """Returns the step to fork from. Raises UsageError or CheckpointError if no checkpoint is valid."""
    run_dir = checkpoints.run_dir
    eligible = eligible_steps(checkpoints, newest_attempt(run_dir))
    if not eligible:
        raise UsageError(f"RUN={run_dir}: has no checkpoint to fork from; train it until its first one")
    if wanted is not None and wanted not in eligible:
        listed = ", ".join(map(str, eligible))
        raise UsageError(f"--step {wanted}: {run_dir} has no such checkpoint; choose one of steps {listed}")
    last = ""
    for step in reversed(eligible) if wanted is None else [wanted]:
        if not (findings := verify(checkpoints.committed(step))):
            return step
        last = f"{checkpoints.committed(step)}: is invalid ({'; '.join(findings)})"
        if wanted is None:
            print(f"moe-train: {last}; skipped", file=sys.stderr)
    raise CheckpointError(f"{last}; choose another one with --step, or restore it from a copy")


def _fill(run_dir: Path, new: Path, step: int, workers: int) -> None:
    """Make the new run's folder, or leave nothing behind. Raises RunError or CheckpointError."""
    source, made = CheckpointFolder(run_dir).committed(step), Made()
    place = new.resolve()  # a link to an empty folder stays a link
    draft = place.with_name(f".{place.name}.{secrets.token_hex(4)}.tmp")
    made.expect(draft.parent)
    try:
        target = CheckpointFolder(draft).committed(step)
        target.parent.mkdir(parents=True)
        shutil.copytree(source, target)
        if findings := verify(target):
            raise CheckpointError(
                f"{source}: changed while it was being copied ({'; '.join(findings)}); try again"
            )
        write_durably(target.parent / "latest", f"{target.name}\n".encode())
        for name in (RECIPE_FILE, TOKENIZER_FILE):
            if (run_dir / name).exists():
                shutil.copyfile(run_dir / name, draft / name)
        manifest = read_manifest(target)
        origin = Origin(manifest.attempt, step, manifest.run)
        stands = Place(str(place), draft.stat().st_ino)
        parent = str(run_dir.resolve())
        Identity(new_id(), stands, forked_from=origin, parent=parent, workers=workers).write(draft)
        draft.rename(place)
    except (OSError, shutil.Error, CheckpointError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        made.take_back()
        if isinstance(error, CheckpointError):
            raise
        raise _unfinished(new, error) from None


def _unfinished(new: Path, error: OSError) -> RunError:
    if isinstance(error, shutil.Error):  # of copytree: source, target and reason of each file
        return RunError(
            f"NEW={new}: cannot be created ({error.args[0][0][2]}); free space, or name another folder"
        )
    return RunError.unwritable(new, error, "NEW")
