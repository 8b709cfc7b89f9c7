"""No process group has its first collective in a training step, whatever engine made it."""

import pytest
import torch.distributed as dist
from gloo_workers import run_workers
from layout_run import tiny_step

from moe_train.parallel.world import World

CASES = [
    ("parallel.expert=2", "parallel.shard=2"),
    ("parallel.tensor=2", "parallel.expert=2", "parallel.expert_tensor=2"),
    ("engine.kind=deepspeed", "engine.stage=2", "parallel.expert=2"),
    ("engine.kind=deepspeed", "engine.stage=1", "parallel.tensor=2", "parallel.expert=2"),
]


def unused_groups(world: World, *cases: tuple[str, ...]) -> list[list[str]]:
    """What torch calls the groups of several workers that are unused once a step is built, for each of some recipes."""
    return [_unused(world, case) for case in cases]


def _unused(world: World, overrides: tuple[str, ...]) -> list[str]:
    before = set(dist.distributed_c10d._world.pg_map)
    tiny_step(world, *overrides)
    made = [
        group for group in dist.distributed_c10d._world.pg_map if group not in before and group.size() > 1
    ]
    assert made, "the layout has no group beside that of all workers"
    return [group.group_desc for group in made if not group._get_sequence_number_for_group()]


@pytest.mark.distributed_exhaustive
def test_every_group_of_several_workers_is_used_before_the_first_step() -> None:
    assert run_workers(4, unused_groups, *CASES) == [[[] for _ in CASES]] * 4
