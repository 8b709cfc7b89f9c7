"""Each detector names what it is for in rows made by hand, and nothing in their healthy twins."""

import pytest
from made_rows import EVEN, judged, recipe_of, row

from moe_train.monitor.detectors.group import DETECTORS

STEPS = range(10, 601, 10)
SICK = 300


def sick(**change):
    """Rows whose figures are the first of a pair until step 300, and the second from then on."""
    return [row(step, **{name: pair[step > SICK] for name, pair in change.items()}) for step in STEPS]


def loads(before, after):
    """Rows whose second layer has other loads from step 300 on."""
    return [row(step, EVEN, after(step) if step > SICK else before) for step in STEPS]


FEW = [3300, 3300, 200, 200, 200, 200, 200, 200]
LEFT, RIGHT = [400, 400, 400, 400, 100, 100, 100, 100], [100, 100, 100, 100, 400, 400, 400, 400]
CASES = {
    "dead_experts": ((), loads(EVEN, lambda step: [290, 0, *[290] * 6]), [1], [1]),
    "dead_experts by gradient": (
        (),
        sick(expert_gradient_norm=([[1.0] * 8] * 2, [[1.0] * 8, [1.0] * 7 + [1e-4]])),
        [1],
        [7],
    ),
    "load_collapse": ((), loads(EVEN, lambda step: FEW), [1], []),
    "load_collapse by one expert": ((), loads(EVEN, lambda step: [2400, *[280] * 7]), [1], []),
    "load_oscillation": ((), loads(EVEN, lambda step: LEFT if step % 20 else RIGHT), [1], []),
    "router_collapse": ((), sick(router_logit_rms=([0.5, 0.5], [0.5, 6.0])), [1], []),
    "router_collapse by z": ((), sick(router_z=([4.0, 4.0], [50.0, 4.0])), [0], []),
    "router_collapse by entropy": ((), sick(router_entropy=([2.0, 2.0], [2.0, 0.1])), [1], []),
    "representation_collapse": ((), sick(expert_similarity=([0.2, 0.2], [0.2, 0.99])), [1], []),
    "device_imbalance": (("parallel.expert=2",), loads(EVEN, lambda step: [350] * 4 + [150] * 4), [1], []),
    "drop_storm": ((), sick(drop_rate=([0.1, 0.1], [0.1, 0.4])), [1], []),
    "drop_storm from the start": ((), sick(drop_rate=([0.1, 0.6], [0.1, 0.6])), [1], []),
    "unlearning_router": ((), sick(router_gradient_norm=([0.1, 0.1], [0.1, 1e-8])), [1], []),
    "loss_spike": ((), [row(step, loss_max=9.0 if step == 310 else 4.0) for step in STEPS], [], []),
    "loss_spike in older rows": ((), [row(step, loss=9.0 if step == 310 else 4.0) for step in STEPS], [], []),
    "not_finite": ((), [row(step, loss=None if step == 310 else 4.0) for step in STEPS], [], []),
    "not_finite update": ((), [row(step, skipped_updates=int(step > SICK)) for step in STEPS], [], []),
    "not_finite router": ((), sick(router_not_finite=([0, 0], [0, 1])), [1], []),
    "layer_drift": ((), [row(step, drop_rate=[0.1, 0.1 + step / 2000]) for step in STEPS], [1], []),
}


def test_every_detector_has_a_case():
    assert {name.split()[0] for name in CASES} == {detector.name for detector in DETECTORS}


@pytest.mark.parametrize("name", CASES)
def test_a_detector_names_its_illness_with_layer_and_experts_and_no_other_does(name):
    overrides, rows, layers, experts = CASES[name]
    begun, _ = judged(recipe_of(*overrides), rows)
    assert {(alarm.detector, *alarm.layers) for _, alarm in begun} == {(name.split()[0], *layers)}
    assert {tuple(alarm.experts) for _, alarm in begun} == {tuple(experts)}
    if "start" not in name and "drift" not in name:
        step, alarm = begun[0]
        assert SICK < alarm.since <= 311
        assert step <= SICK + 60


@pytest.mark.parametrize("name", CASES)
def test_until_it_falls_ill_nothing_is_named(name):
    overrides, rows, *_ = CASES[name]
    if "start" not in name and "drift" not in name:
        assert judged(recipe_of(*overrides), [each for each in rows if each["step"] <= SICK]) == ([], [])


def test_a_drop_rate_that_was_always_so_is_no_storm_below_a_half():
    assert judged(recipe_of(), [row(step, drop_rate=[0.4, 0.4]) for step in STEPS]) == ([], [])


def test_a_few_outliers_in_loads_that_are_uneven_from_the_start_are_no_alarm():
    uneven = [600, 500, 400, 300, 250, 200, 150, 100]
    assert judged(recipe_of(), [row(step, uneven, uneven) for step in STEPS]) == ([], [])
