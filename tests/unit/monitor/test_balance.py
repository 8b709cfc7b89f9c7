"""Every figure against a value worked out by hand."""

import math

import pytest

from moe_train.monitor import balance

EVEN, LOPSIDED, ONE_EXPERT = [5, 5, 5, 5], [8, 4, 4, 0], [0, 12, 0, 0]


def test_an_even_load_has_perfect_figures() -> None:
    assert balance.cv(EVEN) == 0.0
    assert balance.max_violation(EVEN) == 0.0
    assert balance.load_entropy(EVEN) == pytest.approx(1.0, abs=1e-15)
    assert balance.effective_experts(EVEN) == pytest.approx(4.0)
    assert balance.dead_fraction(EVEN) == 0.0


def test_a_lopsided_load_by_hand() -> None:
    # mean 4, deviations 4 0 0 -4: variance 32 / 4 = 8
    assert balance.cv(LOPSIDED) == pytest.approx(math.sqrt(8) / 4)
    assert balance.max_violation(LOPSIDED) == 1.0
    assert balance.top_share(LOPSIDED) == 0.5
    assert balance.device_load(LOPSIDED, 2) == [12, 4]
    assert balance.device_load(LOPSIDED, 1) == [16]
    # shares 1/2 1/4 1/4: H = 1.5 ln 2, and ln 4 = 2 ln 2
    assert balance.load_entropy(LOPSIDED) == pytest.approx(0.75)
    assert balance.effective_experts(LOPSIDED) == pytest.approx(2**1.5)
    assert balance.dead_fraction(LOPSIDED) == 0.25


def test_one_expert_with_everything_has_the_worst_figures() -> None:
    assert balance.cv(ONE_EXPERT) == pytest.approx(math.sqrt(3))
    assert balance.max_violation(ONE_EXPERT) == 3.0
    assert balance.load_entropy(ONE_EXPERT) == 0.0
    assert balance.effective_experts(ONE_EXPERT) == 1.0
    assert balance.dead_experts(ONE_EXPERT) == [0, 2, 3]


def test_an_expert_is_dead_below_a_tenth_of_the_fair_share_and_not_at_it() -> None:
    # 40 assignments to 4 experts: the fair share is 10, a tenth of it is 1
    assert balance.dead_experts([20, 18, 1, 1]) == []
    assert balance.dead_experts([20, 19, 1, 0]) == [3]


def test_a_layer_with_one_expert_is_even() -> None:
    assert balance.load_entropy([7]) == 1.0
    assert balance.cv([7]) == 0.0
    assert balance.dead_fraction([7]) == 0.0


def test_a_window_without_assignments_measured_nothing() -> None:
    for figure in (
        balance.cv,
        balance.max_violation,
        balance.load_entropy,
        balance.effective_experts,
        balance.dead_fraction,
    ):
        assert math.isnan(figure([0, 0, 0])), figure.__name__
    assert balance.dead_experts([0, 0, 0]) == []
