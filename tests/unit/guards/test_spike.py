"""The rule for a spike, by hand."""

import json
import math

from moe_train.guards.spike import SpikeWatch


def watch(*losses: float, window: int = 5, threshold: float = 6.0) -> SpikeWatch:
    made = SpikeWatch(window, threshold)
    for loss in losses:
        made.add(loss)
    return made


def test_the_limit_is_the_median_and_so_many_absolute_deviations():
    """Of 1 2 3 4 9 the median is 3, the deviations from it are 2 1 0 1 6, and their median is 1."""
    made = watch(1, 2, 3, 4, 9)
    assert made.limit == 3 + 6 * 1
    made.add(9)
    assert made.in_row == 0
    assert made.limit == 4 + 6 * 2  # of 2 3 4 9 9
    made.add(16.5)
    assert made.in_row == 1


def test_nothing_is_a_spike_until_the_window_is_full():
    made = watch(1, 1, 1, 1000)
    assert made.limit == math.inf
    assert made.in_row == 0


def test_spikes_are_counted_in_a_row_and_do_not_enter_the_window():
    made = watch(1, 2, 3, 4, 5, 100, 100)
    assert made.in_row == 2
    assert made.limit == 9
    made.add(3)
    assert made.in_row == 0
    assert made.state_dict()["losses"] == [2, 3, 4, 5, 3]


def test_its_state_goes_through_json_and_into_a_smaller_window():
    made = watch(0.1, 0.2, 1 / 3, 0.4, 0.5, 100)
    state = json.loads(json.dumps(made.state_dict()))
    same, smaller = watch(), watch(window=3)
    same.load_state_dict(state)
    smaller.load_state_dict(state)
    assert (same.limit, same.in_row) == (made.limit, 1)
    assert smaller.state_dict()["losses"] == [1 / 3, 0.4, 0.5]
