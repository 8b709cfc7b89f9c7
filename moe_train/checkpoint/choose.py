"""Which checkpoint to resume from: the newest on the lineage that verifies, or the one that was asked for.

Rank 0 looks, all ranks share the hashing, and all come to the same answer or the same error.
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
Wanted = Literal["latest"] | int
T = TypeVar("T")


@dataclass(frozen=True)
class Found:
    """A committed checkpoint that has been verified."""

    step: int
    path: Path
    manifest: Manifest

    @property
    def origin(self) -> Origin:
        """What an attempt that resumes from it records."""
        return Origin(self.manifest.attempt, self.step, self.manifest.run)


def choose(folder: CheckpointFolder, wanted: Wanted, world: World, newest: float = math.inf) -> Found | None:
    """The checkpoint to resume from, none newer than step `newest`; None if there is none. Collective.

    A bad one is warned of and the next older one taken. Raises CheckpointError, on all ranks, if there are
    checkpoints and none is good, or if the step asked for is missing, off the lineage or bad.
    """
    candidates = _on_main(world, lambda: _candidates(folder, wanted, world.attempt))
    steps = [step for step in candidates if step <= newest]
    last = ""
    for step in steps:
        path = folder.committed(step)
        manifest, findings = _check(path, world)
        if manifest is not None and not findings:
            return Found(step, path, manifest)
        last = "; ".join(findings)
        if world.is_main and wanted == "latest":
            logger.warning("Checkpoint %s is bad and is passed over: %s.", path, last)
    if not steps:
        return None
    if wanted != "latest":
        raise CheckpointError(
            f"{folder.committed(wanted)}: is bad ({last}); choose another step with --resume"
        )
    raise CheckpointError(
        f"{folder.root}: holds {len(steps)} checkpoints and none is good (last tried: {last}); restore one "
        "from a copy, or start anew in another folder or with --resume never"
    )


def _candidates(folder: CheckpointFolder, wanted: Wanted, attempt: int) -> list[int]:
    """Steps to try, in this order."""
    present, eligible = folder.steps(), eligible_steps(folder, attempt)
    if wanted == "latest":
        fenced = sorted(set(present) - set(eligible))
        if fenced and not eligible:
            logger.warning(
                "%s: steps %s do not lead to this attempt and are passed over.", folder.root, fenced
            )
        return eligible[::-1]
    if wanted in eligible:
        return [wanted]
    if wanted in present and not limits(folder.run_dir, attempt):
        return [wanted]  # no attempt is on record, and the user has named the checkpoint to go on from
    if wanted not in present:
        why = "is not there"
    elif wanted in unexplained_steps(folder):
        why = "was written by no attempt of this run"
    else:
        why = "was written by an attempt that a newer one had superseded"
    raise CheckpointError(f"{folder.committed(wanted)}: {why}; choose one of {eligible}, or --resume auto")


def _check(path: Path, world: World) -> tuple[Manifest | None, list[str]]:
    """Verify one checkpoint, each rank hashing its share of the files. Collective."""
    manifest, findings = world.from_main(check_manifest(path) if world.is_main else None)
    if manifest is None or findings:
        return manifest, findings
    share = sorted(manifest.files)[world.rank :: world.size]
    return manifest, [
        finding for found in world.gather(check_files(path, manifest, share)) for finding in found
    ]


def _on_main(world: World, function: Callable[[], T]) -> T:
    """Call `function` on rank 0; its result, or the CheckpointError it raises, on all ranks. Collective."""
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
