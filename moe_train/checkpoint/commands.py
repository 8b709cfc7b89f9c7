"""Implements `moe-train ckpt ls|verify|rm|gc`: lists, verifies and removes checkpoints (`removal.py`)."""

import argparse
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from moe_train.arguments import Parser, count, positive
from moe_train.checkpoint import lineage
from moe_train.checkpoint.folder import COMMITTED, CheckpointFolder
from moe_train.checkpoint.manifest import read_manifest
from moe_train.checkpoint.removal import collect, remove_step
from moe_train.checkpoint.verify import verify
from moe_train.errors import CheckpointError, UsageError

EPILOG = """\
examples:
  moe-train ckpt ls switch-tiny                     the run in runs/switch-tiny
  moe-train ckpt rm runs/switch-tiny --step 100
  moe-train ckpt gc runs/switch-tiny --keep-last 1 --dry-run
"""


def main(argv: Sequence[str]) -> int:
    """Runs one of the commands and returns its exit code. Raises UsageError and CheckpointError."""
    arguments = _parser().parse_args(argv)
    folder, step = _locate(arguments.run, getattr(arguments, "step", None))
    if arguments.command == "ls":
        return _list(folder, step)
    if arguments.command == "verify":
        return _verify(folder, step)
    if arguments.command == "rm":
        if step is None:
            raise UsageError(
                "ckpt rm: needs one checkpoint; name it with --step, or as RUN/checkpoints/step_..."
            )
        return remove_step(folder, step, is_sure=arguments.yes)
    return collect(folder, arguments.keep_last, dry_run=arguments.dry_run, is_sure=arguments.yes)


def _parser() -> argparse.ArgumentParser:
    plain = argparse.RawDescriptionHelpFormatter
    parser = Parser(
        prog="moe-train ckpt",
        description="List, verify and remove a run's checkpoints.",
        epilog=EPILOG,
        formatter_class=plain,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("ls", "list them: step, attempt, size, workers, age, and whether a resume may use them"),
        (
            "verify",
            "check all of them, or one step (digest, sizes, hashes, coverage, and whether the copies that several "
            "workers held were equal when it was saved); exits with 1 if one is bad",
        ),
        ("rm", "remove the checkpoint of one step"),
        (
            "gc",
            "remove checkpoints that are unfinished, fenced or beyond checkpoint.keep_last and keep_every",
        ),
    ):
        command = commands.add_parser(name, help=text, description=f"{name}: {text}.")
        command.add_argument(
            "run", metavar="RUN", help="a run folder, its name below runs/, or RUN/checkpoints/step_..."
        )
        if name != "gc":
            command.add_argument("--step", type=count, metavar="STEP", help="only this step")
        else:
            command.add_argument("--dry-run", action="store_true", help="only print what would be removed")
            command.add_argument(
                "--keep-last",
                type=positive,
                metavar="N",
                help="number of newest checkpoints to keep of those a resume may use (default: checkpoint.keep_last)",
            )
        if name in ("rm", "gc"):
            command.add_argument(
                "--yes",
                action="store_true",
                help="do not ask before removing work newer than the checkpoint in use",
            )
    return parser


def _locate(name: str, step: int | None) -> tuple[CheckpointFolder, int | None]:
    """Returns the run's folder, and the step if one is named."""
    for path in (Path(name), Path("runs", name)):
        run, named_step = _run_and_step(path.resolve(), step)
        folder = CheckpointFolder(run)
        if os.path.isdir(folder.root):
            break
    else:
        names = sorted(path.parent.name for path in Path("runs").glob("*/checkpoints"))
        hint = f"known runs: {', '.join(names)}" if names else "`moe-train run RECIPE` makes one"
        raise UsageError(
            f"RUN={name}: has no folder checkpoints; name a run folder, a run below runs/, or "
            f"RUN/checkpoints/step_...; {hint}"
        )
    if named_step is not None and named_step not in folder.steps():
        raise UsageError(f"--step={named_step}: {run} has no such checkpoint; it has {folder.steps()}")
    return folder, named_step


def _run_and_step(path: Path, step: int | None) -> tuple[Path, int | None]:
    """Returns the run's folder of RUN, RUN/checkpoints or RUN/checkpoints/step_..., and the step if one is named."""
    if (match := COMMITTED.fullmatch(path.name)) and path.parent.name == "checkpoints":
        return path.parents[1], int(match[1])
    return (path.parent if path.name == "checkpoints" else path), step


def _list(folder: CheckpointFolder, only_step: int | None) -> int:
    limits = lineage.limits(folder.run_dir, lineage.newest_attempt(folder.run_dir))
    unexplained = lineage.unexplained_steps(folder)
    print(f"{'step':>10} {'attempt':>7} {'size':>10} {'workers':>7} {'age':>8}  state")
    for step in folder.steps():
        if only_step not in (None, step):
            continue
        try:
            manifest = read_manifest(folder.committed(step))
        except CheckpointError as error:
            print(f"{step:>10} {'?':>7} {'?':>10} {'?':>7} {'?':>8}  bad: {error}")
            continue
        state = "eligible" if lineage.is_eligible(limits, step, manifest.writer) else "fenced"
        state = "unexplained" if step in unexplained else state
        age = _age((datetime.now(UTC) - datetime.fromisoformat(manifest.time)).total_seconds())
        size = f"{manifest.size / 2**20:.1f} MiB"
        print(f"{step:>10} {manifest.attempt:>7} {size:>10} {manifest.workers:>7} {age:>8}  {state}")
    for leftover in folder.leftovers() if only_step is None else ():
        print(f"{leftover.path.name}: {leftover.kind}; `moe-train ckpt gc` removes it")
    return 0


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _verify(folder: CheckpointFolder, only_step: int | None) -> int:
    steps = folder.steps() if only_step is None else [only_step]
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
    latest_finding = _latest_finding(folder) if only_step is None else None
    if latest_finding:
        num_bad += 1
        print(latest_finding)
    print(f"{len(steps)} checkpoints checked, {num_bad} problems.", file=sys.stderr)
    return 1 if num_bad else 0


def _latest_finding(folder: CheckpointFolder) -> str | None:
    """Returns the problem with `latest`, if any. A resume does not read it, but people and scripts do.

    A kill between a commit and the writing of `latest` leaves it one behind, or missing after the first commit.
    """
    if not folder.latest.exists():
        return None
    name = folder.latest.read_bytes().decode(errors="replace").removesuffix("\n")
    if not (COMMITTED.fullmatch(name) and (folder.root / name).is_dir()):
        return f"{folder.latest}: names {name!r}, which is not a committed checkpoint"
    return None
