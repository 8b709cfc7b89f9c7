"""Copies of boxes that differ are named with their ranks, and nothing else is, as comparing all of them says."""

import itertools
import random
from collections import defaultdict

import pytest
import torch
from box_layouts import LAYOUTS, data_tensor_and_experts_on_eight, tensor_and_experts_on_four
from threaded_ranks import run_ranks

from moe_train.checkpoint import replicas
from moe_train.checkpoint.layout import Shard, ShardedState, boxes_of
from moe_train.checkpoint.replicas import Difference, Replicas, checksum


def differences(states: list[ShardedState]) -> list[Difference]:
    """What every rank finds, which must be the same."""
    results = run_ranks(len(states), lambda world: Replicas(world).differences(states[world.rank]))
    assert all(result == results[0] for result in results), results
    return results[0]


def compared_one_by_one(states: list[ShardedState]) -> list[Difference]:
    """The slow twin: every copy of every box against every other one."""
    copies = defaultdict(list)
    for rank, state in enumerate(states):
        for name, shard in boxes_of(state):
            if shard.data.numel():
                copies[name, shard.offsets, shard.data.shape].append((rank, shard.data))
    found = []
    for (name, _, _), held in copies.items():
        groups: list[list[tuple[int, torch.Tensor]]] = []
        for rank, data in held:
            alike = next((group for group in groups if torch.equal(group[0][1], data)), None)
            groups.append([(rank, data)]) if alike is None else alike.append((rank, data))
        if len(groups) > 1:
            ranks = sorted((tuple(rank for rank, _ in group) for group in groups), key=lambda g: (len(g), g))
            found.append(Difference(name, tuple(ranks)))
    return sorted(found, key=lambda difference: difference.name)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_what_no_rank_changed_is_equal(layout):
    assert differences([layout(rank) for rank in range(LAYOUTS[layout])]) == []


def test_names_and_ranks_are_said():
    states = [tensor_and_experts_on_four(rank) for rank in range(4)]
    states[3]["norm"][0].data[2] += 1e-6
    states[2]["heads"][0].data[0, 0] += 1
    states[1]["experts.up"][0].data.zero_()  # no other rank has this slice
    found = differences(states)
    assert [str(difference) for difference in found] == [
        "heads has other values on rank 0 than on rank 2",
        "norm has other values on rank 3 than on ranks 0, 1, 2",
    ]


@pytest.mark.parametrize("chunk", [4, 2**20])
def test_every_change_is_found_as_by_comparing_all(monkeypatch, chunk):
    monkeypatch.setattr(replicas, "CHUNK", chunk)
    draw = random.Random(chunk)
    for layout in (tensor_and_experts_on_four, data_tensor_and_experts_on_eight):
        for _ in range(6):
            states = [layout(rank) for rank in range(LAYOUTS[layout])]
            for _ in range(draw.randint(1, 3)):
                (shard,) = draw.choice(
                    [shards for shards in draw.choice(states).values() if shards[0].data.numel()]
                )
                flat = shard.data.view(-1)
                one, other = draw.randrange(len(flat)), draw.randrange(len(flat))
                flat[[one, other]] = flat[[other, one]] if draw.random() < 0.5 else flat[[one, other]] * 1.5
            assert differences(states) == compared_one_by_one(states)


def test_later_calls_see_later_values():
    states = [tensor_and_experts_on_four(rank) for rank in range(4)]

    def compare_twice(world):
        seen = Replicas(world)
        before = seen.differences(states[world.rank])
        if world.rank == 1:
            states[1]["norm"][0].data[0] = 0
        world.barrier()
        return before, seen.differences(states[world.rank])

    expected = ([], [Difference("norm", ((1,), (0, 2, 3)))])
    assert run_ranks(4, compare_twice) == [expected] * 4


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.tensor(3.0), torch.tensor(4.0)),
        (torch.tensor([0.0]), torch.tensor([-0.0])),
        (torch.tensor([True, False]), torch.tensor([False, True])),
        (torch.tensor([1, 2], dtype=torch.bfloat16), torch.tensor([2, 1], dtype=torch.bfloat16)),
        (torch.tensor([2**62, 0]), torch.tensor([-(2**62), 0])),
        (torch.tensor([5, 7], dtype=torch.uint8), torch.tensor([5, 6], dtype=torch.uint8)),
    ],
    ids=str,
)
def test_a_checksum_sees_every_bit_and_its_place(one, other):
    assert checksum([one]) == checksum([one.clone()])
    assert checksum([one]) != checksum([other])
    assert checksum([one, other]) != checksum([other, one])


def test_no_bit_is_lost_at_any_place(monkeypatch):
    monkeypatch.setattr(replicas, "CHUNK", 3)
    data = torch.zeros(8, dtype=torch.int64)
    unchanged = checksum([data])
    for place, bit in itertools.product(range(8), range(64)):
        changed = data.clone()
        changed[place] = -(2**63) if bit == 63 else 2**bit
        assert checksum([changed]) != unchanged, (place, bit)


def test_one_rank_has_no_copies():
    state = {"w": [Shard(torch.ones(2), (2,), (0,))]}
    assert run_ranks(1, lambda world: Replicas(world).differences(state)) == [[]]
