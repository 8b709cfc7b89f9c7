"""Capacity by hand: who is dropped."""

import pytest
import torch

from moe_train.moe.capacity import first_with_room, within_capacity
from moe_train.moe.routing import Routing


def routing(first: list[int], second: list[int] | None = None, experts: int = 4) -> Routing:
    """Token t goes to expert first[t] and, if given, second[t]."""
    columns = [first] if second is None else [first, second]
    ids = torch.tensor(columns).t()
    tokens, choices = ids.shape
    index = torch.arange(ids.numel())
    return Routing(
        index // choices, ids.reshape(-1), index % choices, torch.ones(ids.numel()), tokens, experts, choices
    )


def dropped(routing: Routing, group_tokens: int, slots: int) -> set[tuple[int, int]]:
    """(token, choice) of every edge that does not fit."""
    refused = ~within_capacity(routing, group_tokens, slots)
    return set(zip(routing.token_ids[refused].tolist(), routing.choices[refused].tolist(), strict=True))


def test_earlier_tokens_come_first():
    assert dropped(routing([0, 1, 0, 0, 1, 0]), group_tokens=6, slots=2) == {(3, 0), (5, 0)}


def test_every_first_choice_comes_before_any_second_choice():
    # Expert 0 is wanted by tokens 2 and 3 as their first choice and by token 0 as its second.
    edges = routing(first=[1, 2, 0, 0], second=[0, 3, 1, 2])
    assert dropped(edges, group_tokens=4, slots=2) == {(0, 1)}


def test_second_choices_fill_what_first_choices_leave():
    # Expert 0: first choice of token 3, then second choices of tokens 0 and 1 in order of position.
    edges = routing(first=[1, 2, 3, 0], second=[0, 0, 0, 1])
    assert dropped(edges, group_tokens=4, slots=2) == {(1, 1), (2, 1)}


def test_each_group_counts_for_itself():
    # Two groups of three tokens, all for expert 1: two of each fit.
    assert dropped(routing([1] * 6), group_tokens=3, slots=2) == {(2, 0), (5, 0)}


def test_zero_edges_are_no_trouble():
    edges = routing([0, 1]).keep(torch.tensor([False, False]))
    assert within_capacity(edges, 2, 1).shape == (0,)


@pytest.mark.parametrize("choices", [1, 2, 3])
def test_the_sorted_count_equals_a_slow_count(choices):
    generator = torch.Generator().manual_seed(choices)
    tokens, experts, group, slots = 42, 5, 7, 2
    ids = torch.rand(tokens, experts, generator=generator).argsort(1)[:, :choices]
    index = torch.arange(tokens * choices)
    edges = Routing(
        index // choices,
        ids.reshape(-1),
        index % choices,
        torch.ones(index.numel()),
        tokens,
        experts,
        choices,
    )
    taken: dict[tuple[int, int], int] = {}
    fits = torch.zeros(tokens, choices, dtype=torch.bool)
    for choice in range(choices):
        for token in range(tokens):
            place = (token // group, int(ids[token, choice]))
            fits[token, choice] = taken.get(place, 0) < slots
            taken[place] = taken.get(place, 0) + 1
    assert torch.equal(within_capacity(edges, group, slots), fits.reshape(-1))


def test_a_token_that_is_refused_tries_its_next_expert_after_all_first_choices():
    # Room for one each. Token 0 has expert 0, token 3 has 1; then 1 is refused there, 2 has 2, and nothing is left.
    edges = routing(first=[0, 0, 0, 1], second=[1, 1, 2, 0], experts=3)
    used = first_with_room(edges, group_tokens=4, slots=1)
    assert list(zip(edges.token_ids[used].tolist(), edges.expert_ids[used].tolist(), strict=True)) == [
        (0, 0),
        (2, 2),
        (3, 1),
    ]


@pytest.mark.parametrize("slots", [1, 2, 20])
def test_the_rounds_equal_a_slow_count(slots):
    tokens, experts, choices, group = 42, 5, 3, 7
    ids = torch.rand(tokens, experts, generator=torch.Generator().manual_seed(slots)).argsort(1)[:, :choices]
    index = torch.arange(tokens * choices)
    edges = Routing(
        index // choices, ids.reshape(-1), index % choices, torch.ones(len(index)), tokens, experts, choices
    )
    room = {(first, expert): slots for first in range(tokens // group) for expert in range(experts)}
    expected: dict[int, int] = {}
    for choice in range(choices):
        for token in (token for token in range(tokens) if token not in expected):
            place = (token // group, int(ids[token, choice]))
            if room[place]:
                room[place] -= 1
                expected[token] = place[1]
    used = first_with_room(edges, group, slots)
    assert dict(zip(edges.token_ids[used].tolist(), edges.expert_ids[used].tolist(), strict=True)) == expected
    assert int(used.sum()) == len(expected)
