"""`moe-train ckpt ls|verify|gc`: list checkpoints, check every byte of them, remove what is left over."""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from moe_train.arguments import Parser
from moe_train.checkpoint import lineage
from moe_train.checkpoint.folder import COMMITTED, CheckpointFolder, Leftover, explain, remove
from moe_train.checkpoint.manifest import read_manifest
from moe_train.checkpoint.retention import surplus
from moe_train.checkpoint.verify import verify
from moe_train.config.load import load_recipe
from moe_train.errors import CheckpointError, UsageError

QUIET_S = 600.0  # a temporary folder of the newest attempt that changed so recently may still be written

Removal = tuple[Path, str]
"""What gc removes, and why."""


def main(argv: Sequence[str]) -> int:
    """Run one of the commands; the exit code. Raises UsageError and CheckpointError."""
    arguments = _parser().parse_args(argv)
    folder, step = _locate(arguments.run, getattr(arguments, "step", None))
    if arguments.command == "ls":
        return _list(folder, step)
    if arguments.command == "verify":
        return _verify(folder, step)
    return _collect(folder, arguments.dry_run)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="moe-train ckpt", description="Look after a run's checkpoints.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("ls", "list them: step, attempt, size, workers, age, and whether a resume may use them"),
        ("verify", "check all of them, or one step: digest, sizes, hashes, coverage; exit 1 if one is bad"),
        ("gc", "remove what is unfinished, fenced or beyond checkpoint.keep_last and keep_every"),
    ):
        command = commands.add_parser(name, help=text, description=f"{name}: {text}.")
        command.add_argument(
            "run", type=Path, metavar="RUN", help="a run folder, or RUN/checkpoints/step_..."
        )
        if name == "gc":
            command.add_argument("--dry-run", action="store_true", help="only say what would be removed")
        else:
            command.add_argument("--step", type=int, help="only this step")
    return parser


def _locate(run: Path, step: int | None) -> tuple[CheckpointFolder, int | None]:
    """The folder of the run, and the step if one is meant."""
    run = run.resolve()
    if (match := COMMITTED.fullmatch(run.name)) and run.parent.name == "checkpoints":
        run, step = run.parents[1], int(match[1])
    elif run.name == "checkpoints":
        run = run.parent
    folder = CheckpointFolder(run)
    if not folder.root.is_dir():
        raise UsageError(
            f"RUN={run}: has no folder checkpoints; name a run folder, or RUN/checkpoints/step_..."
        )
    if step is not None and step not in folder.steps():
        raise UsageError(f"--step={step}: {run} has no such checkpoint; it has {folder.steps()}")
    return folder, step


def _list(folder: CheckpointFolder, wanted: int | None) -> int:
    known = lineage.limits(folder.run_dir, lineage.newest_attempt(folder.run_dir))
    unexplained = lineage.unexplained_steps(folder)
    print(f"{'step':>10} {'attempt':>7} {'size':>10} {'workers':>7} {'age':>8}  state")
    for step in folder.steps():
        if wanted not in (None, step):
            continue
        try:
            manifest = read_manifest(folder.committed(step))
        except CheckpointError as error:
            print(f"{step:>10} {'?':>7} {'?':>10} {'?':>7} {'?':>8}  bad: {error}")
            continue
        state = "eligible" if lineage.is_eligible(known, step, manifest.writer) else "fenced"
        state = "unexplained" if step in unexplained else state
        age = _age((datetime.now(UTC) - datetime.fromisoformat(manifest.time)).total_seconds())
        size = f"{manifest.size / 2**20:.1f} MiB"
        print(f"{step:>10} {manifest.attempt:>7} {size:>10} {manifest.workers:>7} {age:>8}  {state}")
    for leftover in folder.leftovers() if wanted is None else ():
        print(f"{leftover.path.name}: {leftover.kind}; `moe-train ckpt gc` removes it")
    return 0


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _verify(folder: CheckpointFolder, wanted: int | None) -> int:
    steps = folder.steps() if wanted is None else [wanted]
    num_bad = 0
    for step in steps:
        findings = verify(folder.committed(step))
        if findings and not folder.committed(step).exists():
            print(f"{folder.committed(step).name}: removed meanwhile by the run")
            continue
        num_bad += bool(findings)
        print(f"{folder.committed(step).name}: {'BAD' if findings else 'good'}")
        for finding in findings:
            print(f"  {finding}")
    latest_finding = _latest_finding(folder) if wanted is None else None
    if latest_finding:
        num_bad += 1
        print(latest_finding)
    print(f"{len(steps)} checkpoints checked, {num_bad} problems.", file=sys.stderr)
    return 1 if num_bad else 0


def _latest_finding(folder: CheckpointFolder) -> str | None:
    """What is wrong with `latest`. A resume does not read it, but people and scripts do.

    A kill between a commit and the writing of `latest` leaves it one behind, or missing after the first commit.
    """
    if not folder.latest.exists():
        return None
    name = folder.latest.read_bytes().decode(errors="replace").removesuffix("\n")
    if not (COMMITTED.fullmatch(name) and (folder.root / name).is_dir()):
        return f"{folder.latest}: names {name!r}, which is not a committed checkpoint"
    return None


def _collect(folder: CheckpointFolder, dry_run: bool) -> int:
    removals = [*_unfinished(folder), *_beyond_retention(folder)]
    for path, why in removals:
        print(f"{'would remove' if dry_run else 'removing'} {path.name}: {why}")
        if not dry_run:
            try:
                remove(path)
            except OSError as error:
                raise explain(error, "removing it", path) from None
    print(f"{len(removals)} {'to remove' if dry_run else 'removed'}.", file=sys.stderr)
    return 0


def _unfinished(folder: CheckpointFolder) -> Iterator[Removal]:
    newest = lineage.newest_attempt(folder.run_dir)
    reasons = {
        "tmp": "never committed",
        "fenced": "written by a superseded attempt",
        "abandoned": "left behind by a rollback",
        "deleted": "half removed",
        "failed": "the note of a failed save",
    }
    for leftover in folder.leftovers():
        if leftover.kind == "tmp" and leftover.attempt == newest and _is_fresh(leftover):
            print(f"keeping {leftover.path.name}: attempt {newest} may be writing it")
        else:
            yield leftover.path, reasons[leftover.kind]


def _is_fresh(leftover: Leftover) -> bool:
    changed = [path.stat().st_mtime for path in (leftover.path, *leftover.path.glob("*"))]
    return time.time() - max(changed) < QUIET_S


def _beyond_retention(folder: CheckpointFolder) -> Iterator[Removal]:
    """Committed checkpoints that may go: never one whose manifest is unreadable, nor the newest good one."""
    newest = lineage.newest_attempt(folder.run_dir)
    eligible = lineage.eligible_steps(folder, newest)
    unexplained = lineage.unexplained_steps(folder)
    for step in unexplained:
        print(f"keeping {folder.committed(step).name}: written by no attempt on record here")
    for step in sorted(set(folder.steps()) - set(eligible) - set(unexplained)):
        yield folder.committed(step), "written by a superseded attempt"
    recipe = folder.run_dir / "recipe.yaml"
    if not recipe.exists():
        print(f"keeping all others: {recipe} is missing, so checkpoint.keep_last is not known")
        return
    config = load_recipe(recipe).checkpoint
    going = surplus(eligible, config.keep_last, config.keep_every)
    if not going:
        return
    newest_good = next((step for step in reversed(eligible) if not verify(folder.committed(step))), None)
    for step in going:
        if step != newest_good and lineage.writer(folder.committed(step)) is not None:
            yield folder.committed(step), f"beyond checkpoint.keep_last={config.keep_last}"
