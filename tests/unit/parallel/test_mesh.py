"""Who is on which axis of the meshes, and over whom a sum along it runs."""

from dataclasses import replace
from operator import attrgetter

import pytest
import torch
from gloo_workers import run_workers
from threaded_ranks import one_rank

from moe_train.config.plan import ParallelPlan
from moe_train.parallel.mesh import Mesh
from moe_train.parallel.world import World

AXES = ("data", "tensor", "replica", "expert", "expert_tensor", "exchange")
GROUPED = ("sharding.shard", "sharding.copy", "expert_sharding.shard", "expert_sharding.copy")
ALONE = (1, 0, 1000)
ALL = (4, 3, 1111)


def places_and_sums(world: World, plans: list[ParallelPlan]) -> list[dict[str, tuple[int, int, float]]]:
    """Size and place on every axis of every plan, and the sum of 10^rank along it."""
    found = []
    for plan in plans:
        mesh = Mesh.build(plan, world)
        axes = {name: attrgetter(name)(mesh) for name in (*AXES, *GROUPED)}
        found.append(
            {
                name: (axis.size, axis.rank, axis.total(torch.tensor([10.0**world.rank]))[0])
                for name, axis in axes.items()
            }
        )
    return found


def test_a_sum_runs_over_the_workers_of_its_axis_alone():
    plan = ParallelPlan(data=4)
    expected = {
        plan: (ALL, ALONE, ALL, ALONE, ALONE, ALONE),
        replace(plan, expert=2): (ALL, ALONE, (2, 1, 1010), (2, 1, 1100), ALONE, (2, 1, 1100)),
        replace(plan, expert=4): (ALL, ALONE, ALONE, ALL, ALONE, ALL),
        # Experts over all workers, though two of these read the same share.
        ParallelPlan(data=2, tensor=2, expert=4): ((2, 1, 1010), (2, 1, 1100), ALONE, ALL, ALONE, ALL),
        ParallelPlan(data=2, tensor=2, expert=2, expert_tensor=2): (
            (2, 1, 1010),
            (2, 1, 1100),
            ALONE,
            (2, 1, 1010),
            (2, 1, 1100),
            ALL,
        ),
        ParallelPlan(data=1, tensor=4, expert_tensor=2): (
            ALONE,
            ALL,
            (2, 1, 1010),
            ALONE,
            (2, 1, 1100),
            (2, 1, 1100),
        ),
    }
    near, far = (2, 1, 1100), (2, 1, 1010)
    grouped = {
        replace(plan, expert=2): (ALL, ALONE, far, ALONE),
        replace(plan, shard=2): (near, far, near, far),
        replace(plan, shard=2, expert=2): (near, far, ALONE, far),
        # Experts are spread further than weights are sharded.
        replace(plan, shard=2, expert=4): (near, far, ALONE, ALONE),
        ParallelPlan(data=2, tensor=2, shard=1, expert_tensor=2): (ALONE, far, ALONE, far),
    }
    last = run_workers(4, places_and_sums, [*expected, *grouped])[3]
    of_axes = [{name: places[name] for name in AXES} for places in last[: len(expected)]]
    assert of_axes == [dict(zip(AXES, axes, strict=True)) for axes in expected.values()]
    of_groups = [{name: places[name] for name in GROUPED} for places in last[len(expected) :]]
    assert of_groups == [dict(zip(GROUPED, axes, strict=True)) for axes in grouped.values()]


def test_a_single_worker_has_every_axis_to_itself():
    assert places_and_sums(one_rank(), [ParallelPlan()]) == [dict.fromkeys((*AXES, *GROUPED), (1, 0, 1.0))]


@pytest.mark.parametrize(
    ("plan", "factor"),
    [
        (ParallelPlan(data=4, expert=2), 1 / 2),
        (ParallelPlan(data=2, tensor=2, expert=4), 2 / 4),
        (ParallelPlan(data=2, tensor=4, expert=2, expert_tensor=2), 4 / 4),
        (ParallelPlan(data=3, tensor=2, expert=3), 2 / 3),
    ],
)
def test_expert_gradients_are_those_of_the_mean_over_data(plan, factor):
    """What replicas average of the sum over a set of experts, times the factor, is the sum over all by `data`."""
    assert plan.expert_gradient_factor == factor
    sum_over_all = 12.0
    assert sum_over_all / plan.replicas * factor == pytest.approx(sum_over_all / plan.data, rel=1e-15)
