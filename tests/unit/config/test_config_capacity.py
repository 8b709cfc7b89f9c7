"""Slots of an expert by hand, and the factor that they are."""

import random
from collections import Counter
from collections.abc import Iterator

import pytest

from moe_train.config.capacity import capacity, chance_cv, dropped_share, effective_factor


@pytest.mark.parametrize(
    ("convention", "factor", "tokens", "experts", "choices", "smallest", "slots"),
    [
        ("mesh", 1.25, 128, 8, 1, 4, 20),  # floor(1.25 * 16)
        ("mesh", 1.25, 100, 8, 1, 4, 15),  # floor(15.625)
        ("mesh", 1.25, 100, 8, 2, 4, 15),  # choices are not counted
        ("deepspeed", 1.25, 100, 8, 1, 4, 16),  # ceil(15.625)
        ("deepspeed", 1.25, 100, 8, 2, 4, 32),  # ceil(31.25)
        ("vmoe", 1.25, 100, 8, 2, 4, 32),  # 32 is a multiple of 4 already
        ("vmoe", 1.05, 100, 8, 1, 1, 16),  # ceil(13.125) = 14, up to 16
        ("mesh", 1.25, 16, 32, 1, 4, 4),  # floor(0.625) = 0, at least 4
        ("mesh", 99.0, 16, 4, 1, 4, 16),  # at most the tokens there are
        ("vmoe", 99.0, 10, 4, 1, 4, 10),  # and that after rounding up
        ("mesh", 1.0, 2, 1, 1, 4, 4),  # the smallest wins over the number of tokens
    ],
)
def test_slots_follow_the_convention(convention, factor, tokens, experts, choices, smallest, slots):
    assert capacity(convention, factor, tokens, experts, choices, smallest) == slots


def test_a_capacity_factor_of_the_number_of_experts_holds_every_token():
    assert capacity("mesh", 4.0, 13, 4, 1, 1) == 13


@pytest.mark.parametrize(("convention", "factor"), [("mesh", 2.5), ("deepspeed", 1.25), ("vmoe", 1.25)])
def test_the_factor_of_a_number_of_slots_counts_choices_where_the_convention_does(convention, factor):
    assert effective_factor(convention, slots=20, tokens=64, experts=8, choices=2) == factor


def random_groups(tokens: int, experts: int, choices: int, groups: int) -> Iterator[list[int]]:
    """Loads of groups whose tokens go to `choices` different experts each, at random."""
    draws = random.Random(5)
    for _ in range(groups):
        counts = Counter(each for _ in range(tokens) for each in draws.sample(range(experts), choices))
        yield [counts[expert] for expert in range(experts)]


@pytest.mark.parametrize(
    ("tokens", "experts", "choices", "slots"),
    [(128, 8, 1, 20), (128, 8, 1, 16), (128, 8, 2, 40), (64, 16, 1, 5), (100, 4, 3, 80), (40, 8, 8, 40)],
)
def test_random_routing_has_the_cv_and_drops_the_share_of_a_simulation(tokens, experts, choices, slots):
    groups = list(random_groups(tokens, experts, choices, 400))
    mean, chance = tokens * choices / experts, chance_cv(tokens, experts, choices)
    loads = [load for group in groups for load in group]
    variance = sum((load - mean) ** 2 for load in loads) / len(loads)
    assert variance**0.5 / mean == pytest.approx(chance, rel=0.05)
    dropped = sum(max(load - slots, 0) for load in loads) / sum(loads)
    assert dropped_share(slots, mean, chance) == pytest.approx(dropped, rel=0.1, abs=0.005)


@pytest.mark.parametrize("cv", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("slots", [12, 16, 20, 32])
def test_uneven_loads_drop_the_share_of_a_simulation(slots, cv):
    """Gamma's: skewed, and never below 0, as loads of experts are."""
    draws = random.Random(11)
    loads = [draws.gammavariate(cv**-2, 16 * cv**2) for _ in range(40_000)]
    dropped = sum(max(load - slots, 0) for load in loads) / sum(loads)
    assert dropped_share(slots, 16, cv) == pytest.approx(dropped, rel=0.1, abs=0.015)


def test_even_loads_drop_what_is_beyond_the_slots():
    assert dropped_share(20, 16, 0) == 0
    assert dropped_share(12, 16, 0) == 0.25
    assert dropped_share(16, 16, 0.3) == pytest.approx(0.3 / (2 * 3.141592653589793) ** 0.5)
