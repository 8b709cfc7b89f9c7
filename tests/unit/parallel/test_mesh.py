"""Who is on which axis of the mesh, and over whom a sum along it runs."""

import pytest
import torch
from gloo_workers import run_workers
from threaded_ranks import one_rank

from moe_train.parallel.plan import Mesh, ParallelPlan
from moe_train.parallel.world import World

AXES = ("data", "replica", "expert", "tensor")


def places_and_sums(world: World, expert: int) -> dict[str, tuple[int, int, float]]:
    """Size and place on every axis, and the sum of 10^rank along it."""
    mesh = Mesh.build(ParallelPlan.of(world.size, None, expert), world)
    axes = {name: getattr(mesh, name) for name in AXES}
    return {
        name: (axis.size, axis.rank, axis.total(torch.tensor([10.0**world.rank]))[0])
        for name, axis in axes.items()
    }


@pytest.mark.parametrize(
    ("expert", "last"),
    [
        (1, {"data": (4, 3, 1111), "replica": (4, 3, 1111), "expert": (1, 0, 1000), "tensor": (1, 0, 1000)}),
        (2, {"data": (4, 3, 1111), "replica": (2, 1, 1010), "expert": (2, 1, 1100), "tensor": (1, 0, 1000)}),
        (4, {"data": (4, 3, 1111), "replica": (1, 0, 1000), "expert": (4, 3, 1111), "tensor": (1, 0, 1000)}),
    ],
)
def test_a_sum_runs_over_the_workers_of_its_axis_alone(expert, last):
    assert run_workers(4, places_and_sums, expert)[3] == last


def test_a_single_worker_has_every_axis_to_itself():
    assert places_and_sums(one_rank(), 1) == dict.fromkeys(AXES, (1, 0, 1.0))
