"""Decides which checkpoints a run keeps: the newest ones, and every n-th step forever."""

from collections.abc import Sequence

from moe_train.checkpoint import lineage
from moe_train.checkpoint.folder import CheckpointFolder, remove


def surplus(steps: Sequence[int], keep_last: int, keep_every: int | None) -> list[int]:
    """Returns the `steps` that are neither among the newest `keep_last` (0: all) nor a multiple of `keep_every`."""
    newest = set(sorted(steps)[-keep_last:])  # [-0:] is all of them
    return [
        step for step in sorted(steps) if step not in newest and not (keep_every and step % keep_every == 0)
    ]


def clean(folder: CheckpointFolder, attempt: int, keep_last: int, keep_every: int | None) -> None:
    """Removes what is beyond retention after a commit of `attempt`, and what dead attempts left unfinished.

    Leaves fenced checkpoints and those off the lineage to `moe-train ckpt gc`. Raises OSError, and CheckpointError if
    the attempt is superseded.
    """
    lineage.refuse_if_superseded(folder.run_dir, attempt)
    for leftover in folder.leftovers():
        is_dead = leftover.attempt is None or leftover.attempt < attempt
        if leftover.kind in ("deleted", "failed") or (leftover.kind == "tmp" and is_dead):
            remove(leftover.path)
    if keep_last:
        for step in surplus(lineage.eligible_steps(folder, attempt), keep_last, keep_every):
            remove(folder.committed(step))
