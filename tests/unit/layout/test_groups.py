"""The groups of a layout by hand, and how few lines a thousand workers take."""

import pytest
import torch

from moe_train.config.plan import ParallelPlan
from moe_train.layout.groups import axes, ranks
from moe_train.parallel.mesh import Mesh
from moe_train.parallel.world import World
from moe_train.planner.trace import fake_group

FOLDED = ParallelPlan(data=4, tensor=2, expert=2, expert_tensor=2)


def test_the_groups_of_a_folded_layout():
    groups = {axis.name: [list(group) for group in axis.groups()] for axis in axes(FOLDED)}
    assert groups == {
        "tensor": [[0, 1], [2, 3], [4, 5], [6, 7]],
        "expert_tensor": [[0, 1], [2, 3], [4, 5], [6, 7]],
        "exchange": [[0, 1, 2, 3], [4, 5, 6, 7]],
        "expert": [[0, 2], [1, 3], [4, 6], [5, 7]],
        "replica": [[0, 4], [1, 5], [2, 6], [3, 7]],
        "data": [[0, 2, 4, 6], [1, 3, 5, 7]],
    }


def test_they_are_the_groups_that_a_run_makes():
    with fake_group(8):
        mesh = Mesh.build(FOLDED, World(0, 8, 0, 1, torch.device("cpu")))
        for axis in axes(FOLDED):
            made = torch.distributed.get_process_group_ranks(getattr(mesh, axis.name).group)
            assert made == list(next(axis.groups())), axis.name


@pytest.mark.parametrize(("per_host", "hosts"), [(8, 1), (4, 1), (2, 2), (3, 2)])
def test_a_group_is_on_as_many_hosts_as_its_ranks_are(per_host, hosts):
    exchange = next(axis for axis in axes(FOLDED) if axis.name == "exchange")
    assert exchange.most_hosts(per_host) == hosts


def test_ranks_in_few_words():
    assert ranks(range(3)) == "0, 1, 2"
    assert ranks(range(0, 64)) == "0 to 63"
    assert ranks(range(0, 1024, 64)) == "0, 64, ..., 960"
    assert ranks(range(0, 1024, 512)) == "0 and 512"
