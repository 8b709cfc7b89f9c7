"""Compiled parts give the numbers of uncompiled ones, and are compiled once, whatever the loads.

`aot_eager` stands in for the generator of code where that would take minutes.
"""

from compiled_run import STEPS, Made, with_and_without
from gloo_workers import run_workers


def assert_same(runs: list[Made]) -> None:
    """Within 1e-5 of each tensor's largest element, and nothing compiled after the first update."""
    (expected, _, none), *others = runs
    assert none == [0] * STEPS
    for numbers, loads, graphs in others:
        assert numbers.keys() == expected.keys()
        for name, value in numbers.items():
            largest = expected[name].abs().max() if value.numel() else 0
            assert value.numel() == 0 or (value - expected[name]).abs().max() <= 1e-5 * largest, name
        assert len(set(loads)) == STEPS, "loads that do not vary prove nothing"
        assert graphs[0] > 0
        assert graphs == graphs[:1] * STEPS


def test_a_compiled_model_has_the_same_numbers_and_is_not_compiled_again_as_loads_vary():
    (runs,) = run_workers(1, with_and_without, "aot_eager", ("all",), timeout_s=400)
    assert_same(runs)
    assert runs[1][2][0] >= 6, "attention, feed-forward blocks of two widths, norms, residuals, losses"
