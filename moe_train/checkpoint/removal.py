"""Removes checkpoints on command: one step, or all leftovers. `retention.py` has what a run removes by itself.

Committed work newer than the checkpoint in use (the newest that a resume may use) is removed only after confirmation.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_train.checkpoint import lineage
from moe_train.checkpoint.folder import (
    CheckpointFolder,
    Leftover,
    explain,
    remove,
    write_durably,
)
from moe_train.checkpoint.retention import surplus
from moe_train.checkpoint.verify import verify
from moe_train.config.load import load_recipe
from moe_train.errors import UsageError

QUIET_S = 600.0
"""A temporary folder of the newest attempt that changed so recently may still be written."""
DONE, REFUSED = 0, 1


@dataclass(frozen=True)
class Removal:
    """Names something to remove, and the reason."""

    path: Path
    reason: str


def remove_step(folder: CheckpointFolder, step: int, *, is_sure: bool) -> int:
    """Removes the checkpoint of `step`; asks if it is the one in use or newer. Returns an exit code."""
    in_use = max(_eligible(folder, lineage.writers(folder)), default=None)
    if in_use is None or step >= in_use:
        relation = "which a resume would use" if step == in_use else _than_in_use(in_use)
        if not _is_confirmed(f"{folder.committed(step).name} of {folder.run_dir}, {relation}", "rm", is_sure):
            return REFUSED
    return _remove([Removal(folder.committed(step), "as requested")], folder)


def collect(folder: CheckpointFolder, keep_last: int | None, *, dry_run: bool, is_sure: bool) -> int:
    """Removes leftovers and what is beyond retention; asks before it removes work newer than the one in use.

    `keep_last` overrides the recipe's. Returns an exit code.
    """
    written_by = lineage.writers(folder)
    eligible = _eligible(folder, written_by)
    in_use = max(eligible, default=None)
    superseded = _superseded(folder, written_by, eligible)
    removals = [
        *_unfinished(folder),
        *(Removal(folder.committed(step), "written by a superseded attempt") for step in superseded),
        *_beyond_retention(folder, keep_last, written_by, eligible),
    ]
    newer = [folder.committed(step).name for step in superseded if in_use is None or step > in_use]
    if dry_run:
        for removal in removals:
            print(f"would remove {removal.path.name}: {removal.reason}")
        print(f"{len(removals)} to remove.", file=sys.stderr)
        return DONE
    if newer and not _is_confirmed(
        f"{', '.join(newer)} of a superseded attempt, {_than_in_use(in_use)}", "gc", is_sure
    ):
        return REFUSED
    return _remove(removals, folder)


def _eligible(folder: CheckpointFolder, written_by: lineage.Writers) -> list[int]:
    """Returns the steps that a resume may use, ascending."""
    return lineage.eligible_steps(folder, lineage.newest_attempt(folder.run_dir), written_by)


def _than_in_use(in_use: int | None) -> str:
    if in_use is None:
        return "and a resume may use none"
    return f"newer than step {in_use}, which a resume would use"


def _is_confirmed(what: str, command: str, is_sure: bool) -> bool:
    """Returns whether the user confirmed. Raises UsageError if there is no terminal to ask on."""
    if is_sure:
        return True
    if not (sys.stdin and sys.stdin.isatty()):
        raise UsageError(
            f"ckpt {command}: would remove {what}, and there is no terminal to ask on; nothing was removed; add --yes "
            f"to remove it, or check with `moe-train ckpt {'gc --dry-run' if command == 'gc' else 'ls'}`"
        )
    try:
        answer = input(f"Remove {what}? [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() in ("y", "yes"):
        return True
    print("nothing was removed", file=sys.stderr)
    return False


def _remove(removals: Sequence[Removal], folder: CheckpointFolder) -> int:
    for removal in removals:
        print(f"removing {removal.path.name}: {removal.reason}")
        try:
            remove(removal.path)
        except OSError as error:
            raise explain(error, "removing it", removal.path) from None
    _repair_latest(folder)
    print(f"{len(removals)} removed.", file=sys.stderr)
    return DONE


def _repair_latest(folder: CheckpointFolder) -> None:
    """Makes `latest` name an existing checkpoint if the one it named was removed."""
    try:
        name = folder.latest.read_bytes().decode(errors="replace").strip()
        if (folder.root / name).is_dir():
            return
        if eligible := _eligible(folder, lineage.writers(folder)):
            write_durably(folder.latest, f"{folder.committed(eligible[-1]).name}\n".encode())
        else:
            folder.latest.unlink()
    except FileNotFoundError:
        return
    except OSError as error:
        raise explain(error, "writing latest", folder.root) from None


def _superseded(folder: CheckpointFolder, written_by: lineage.Writers, eligible: Sequence[int]) -> list[int]:
    """Returns the steps of checkpoints by superseded attempts."""
    unexplained = lineage.unexplained_steps(folder, written_by)
    for step in unexplained:
        print(f"keeping {folder.committed(step).name}: written by no attempt on record here")
    return sorted(written_by.keys() - set(eligible) - set(unexplained))


def _unfinished(folder: CheckpointFolder) -> Iterator[Removal]:
    newest = lineage.newest_attempt(folder.run_dir)
    reasons = {
        "tmp": "never committed",
        "fenced": "written by a superseded attempt",
        "abandoned": "abandoned by a rollback",
        "deleted": "partly removed",
        "failed": "note of a failed save",
    }
    for leftover in folder.leftovers():
        if leftover.kind == "tmp" and leftover.attempt == newest and _is_fresh(leftover):
            print(f"keeping {leftover.path.name}: attempt {newest} may be writing it")
        else:
            yield Removal(leftover.path, reasons[leftover.kind])


def _is_fresh(leftover: Leftover) -> bool:
    changed = [path.stat().st_mtime for path in (leftover.path, *leftover.path.glob("*"))]
    return time.time() - max(changed) < QUIET_S


def _beyond_retention(
    folder: CheckpointFolder, keep_last: int | None, written_by: lineage.Writers, eligible: Sequence[int]
) -> Iterator[Removal]:
    """Yields checkpoints beyond retention, except the newest good one and those with an unreadable manifest."""
    recipe = folder.run_dir / "recipe.yaml"
    if recipe.exists():
        config = load_recipe(recipe).checkpoint
        num_newest, keep_every = config.keep_last if keep_last is None else keep_last, config.keep_every
    elif keep_last is not None:
        num_newest, keep_every = keep_last, None
    else:
        print(
            f"keeping all others: {recipe} is missing, so checkpoint.keep_last is unknown; use --keep-last N"
        )
        return
    excess = surplus(eligible, num_newest, keep_every)
    if not excess:
        return
    newest_good = next((step for step in reversed(eligible) if not verify(folder.committed(step))), None)
    source = "checkpoint.keep_last" if keep_last is None else "--keep-last"
    for step in excess:
        if step != newest_good and written_by[step] is not None:
            yield Removal(folder.committed(step), f"beyond {source}={num_newest}")
