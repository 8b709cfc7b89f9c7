"""Lets the ranks of a group exchange their problems before they begin, so that all refuse or none does."""

from typing import Any

import torch.distributed as dist

from moe_kernels.errors import KernelError


def gather(group: dist.ProcessGroup | None, mine: Any) -> list[Any]:
    """Returns each rank's picklable object, in rank order. Collective over `group` (None: this process alone)."""
    if group is None:
        return [mine]
    everyone: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, mine, group=group)
    return everyone


def refuse(problems: list[str | None]) -> None:
    """Raises KernelError with the first problem, if any; `problems` has one entry per rank, in rank order."""
    for rank, problem in enumerate(problems):
        if problem is not None:
            raise KernelError(
                f"rank {rank} of {len(problems)} reports: {problem}" if len(problems) > 1 else problem
            )
