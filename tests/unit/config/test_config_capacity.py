"""Slots of an expert by hand, and the factor that they are."""

import pytest

from moe_train.config.capacity import capacity, effective_factor


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
