"""The detectors on rows of real runs, healthy and sick: tools/make_traces.py made them, and says what each has."""

import json
from pathlib import Path

import pytest

from moe_train.config.load import load_recipe
from moe_train.monitor.alarms import warm_up_steps
from moe_train.monitor.check import check
from moe_train.monitor.detectors.group import DETECTORS
from moe_train.monitor.detectors.window import Windows
from moe_train.monitor.rows import current_rows, read_rows

TRACES = Path(__file__).parents[2] / "traces"
LABELS = json.loads((TRACES / "traces.json").read_text())
HEALTHY = [name for name, illness in LABELS.items() if illness is None]
SICK = [name for name in LABELS if name not in HEALTHY]


def judged(name):
    """The recipe, the training rows and the alarms of a trace that are no notice."""
    recipe = load_recipe(TRACES / name / "recipe.yaml", passed_over=[])
    rows = [row for row in current_rows(read_rows(TRACES / name / "metrics.jsonl")) if "loss" in row]
    return recipe, rows, [alarm for alarm in check(recipe, rows).alarms if alarm["severity"] != "notice"]


def patience(rows):
    """Steps in which an illness must be named: 30, or five windows if those are longer."""
    windows, before, ends = Windows(), 0, []
    for row in rows:
        if windows.add(row, before + 1):
            ends.append(row["step"])
        before = row["step"]
    longest = max((later - first for first, later in zip(ends, ends[5:], strict=False)), default=0)
    return max(30, longest)


@pytest.mark.parametrize("name", HEALTHY)
def test_nothing_is_named_in_a_healthy_run(name):
    _, rows, alarms = judged(name)
    assert len(rows) >= 30
    assert alarms == []


@pytest.mark.parametrize("name", SICK)
def test_an_illness_is_named_soon_by_its_detector_with_its_place_and_nothing_else_is(name):
    recipe, rows, alarms = judged(name)
    illness = LABELS[name]
    begins = max(illness["begins"], 0 if illness["begins"] else warm_up_steps(recipe))
    right = [alarm for alarm in alarms if alarm["detector"] == illness["detector"]]
    first = right[0]
    assert first["step"] <= begins + patience(rows)
    assert illness["begins"] < first["since"]
    assert set(illness["layers"]) <= set(first["layers"])
    if illness["experts"]:
        assert (first["layers"], first["experts"]) == (illness["layers"], illness["experts"])
    assert {alarm["detector"] for alarm in alarms} <= {illness["detector"], *illness["also"]}
    assert all(alarm["step"] > illness["begins"] for alarm in alarms)


def test_every_detector_but_the_one_that_only_notices_has_a_real_run():
    assert {LABELS[name]["detector"] for name in SICK} == {each.name for each in DETECTORS} - {"layer_drift"}
