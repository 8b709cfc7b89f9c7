"""Chooses the checkpoint to resume from: the newest on the lineage that verifies, or the requested one.

Rank 0 lists the candidates, all ranks share the hashing, and all get the same answer or the same error.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar, cast

from moe_train.checkpoint.folder import CheckpointFolder
from moe_train.checkpoint.lineage import eligible_steps, limits, unexplained_steps
from moe_train.checkpoint.manifest import Manifest
from moe_train.checkpoint.verify import check_files, check_manifest
from moe_train.errors import CheckpointError
from moe_train.identity import Origin
from moe_train.parallel.world import World

logger = logging.getLogger(__name__)
Request = Literal["latest"] | int
T = TypeVar("T")


@dataclass(frozen=True)
class Checkpoint:
    """Identifies a committed checkpoint that has been verified."""

    step: int
    path: Path
    manifest: Manifest

    @property
    def origin(self) -> Origin:
        """Returns what an attempt that resumes from this checkpoint records."""
        return Origin(self.manifest.attempt, self.step, self.manifest.run)


def choose(
    folder: CheckpointFolder, request: Request, world: World, newest: float = math.inf
) -> Checkpoint | None:
    """Returns the checkpoint to resume from, none newer than step `newest`; None if there is none. Collective.

    Logs a bad one and takes the next older one. Raises CheckpointError, on all ranks, if there are checkpoints but none
    is good, or if the requested step is missing, off the lineage or bad.
    """
    candidates = _on_main(world, lambda: _candidates(folder, request, world.attempt))
    steps = [step for step in candidates if step <= newest]
    last = ""
    for step in steps:
        path = folder.committed(step)
        manifest, findings = _check(path, world)
        if manifest is not None and not findings:
            return Checkpoint(step, path, manifest)
        last = "; ".join(findings)
        if world.is_main and request == "latest":
            logger.warning("Checkpoint %s is bad, so it is skipped: %s.", path, last)
    if not steps:
        return None
    if request != "latest":
        raise CheckpointError(
            f"{folder.committed(request)}: is bad ({last}); choose another step with --resume"
        )
    raise CheckpointError(
        f"{folder.root}: none of {len(steps)} checkpoints is good (last tried: {last}); restore one from a copy, "
        "or start anew in another folder or with --resume never"
    )


def _candidates(folder: CheckpointFolder, request: Request, attempt: int) -> list[int]:
    """Returns the steps to try, in this order."""
    present, eligible = folder.steps(), eligible_steps(folder, attempt)
    if request == "latest":
        fenced = sorted(set(present) - set(eligible))
        if fenced and not eligible:
            logger.warning(
                "%s: steps %s do not lead to this attempt, so they are skipped.", folder.root, fenced
            )
        return eligible[::-1]
    if request in eligible:
        return [request]
    if request in present and not limits(folder.run_dir, attempt):
        return [request]  # no attempt is on record, and the user has named the checkpoint to resume from
    if request not in present:
        reason = "does not exist"
    elif request in unexplained_steps(folder):
        reason = "was written by no attempt of this run"
    else:
        reason = "was written by an attempt that a newer one had superseded"
    raise CheckpointError(
        f"{folder.committed(request)}: {reason}; choose one of {eligible}, or --resume auto"
    )


def _check(path: Path, world: World) -> tuple[Manifest | None, list[str]]:
    """Verifies one checkpoint, each rank hashing its share of the files. Collective."""
    manifest, findings = world.from_main(check_manifest(path) if world.is_main else None)
    if manifest is None or findings:
        return manifest, findings
    share = sorted(manifest.files)[world.rank :: world.size]
    gathered = world.gather(check_files(path, manifest, share))
    return manifest, [finding for rank_findings in gathered for finding in rank_findings]


def _on_main(world: World, function: Callable[[], T]) -> T:
    """Calls `function` on rank 0 and returns its result, or raises its CheckpointError, on all ranks. Collective."""
    result: tuple[T | None, str] = (None, "")
    if world.is_main:
        try:
            result = (function(), "")
        except CheckpointError as error:
            result = (None, str(error))
    value, message = world.from_main(result)
    if message:
        raise CheckpointError(message)
    return cast(T, value)
