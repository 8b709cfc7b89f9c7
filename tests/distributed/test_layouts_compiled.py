"""Compiled parts give the numbers of uncompiled ones, whatever the loads, and a resumed run those of one never stopped.

`aot_eager` stands in for the generator of code where that would take minutes.
"""

import pytest
import torch
from compiled_run import STEPS, Made, trained_on, with_and_without
from conftest import require_tool
from gloo_workers import run_workers

ARCHITECTURES = [
    ("model.positions=relative",),
    ("model.architecture=encoder", "objective.kind=masked", "model.positions=learned"),
    (
        "model.architecture=encoder_decoder",
        "objective.kind=span_corruption",
        "objective.sentinels=4",
        "model.positions=transformer_xl",
        "model.activation=swiglu",
    ),
    ("objective.kind=consistency", "engine.recompute=block", "model.tied_embeddings=false"),
]
LAYOUTS = [
    (2, ("parallel.tensor=2", "parallel.sequence=true", "engine.recompute=block")),
    (2, ("parallel.tensor=2", "model.positions=transformer_xl", "engine.recompute=attention")),
    (2, ("engine.reshard_after_forward=true", "parallel.shard=1")),
    (2, ("parallel.expert=2", "moe.dispatch.kind=all_to_all", "engine.overlap=shared")),
    (2, ("engine.kind=deepspeed", "engine.stage=2")),
    (2, ("engine.kind=deepspeed", "engine.stage=0", "parallel.tensor=2")),
]


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


@pytest.mark.distributed_exhaustive
@pytest.mark.parametrize("overrides", ARCHITECTURES, ids=" ".join)
def test_generated_code_of_every_architecture_has_the_same_numbers(overrides):
    require_tool("g++", "g++")
    (runs,) = run_workers(1, with_and_without, "inductor", ("dense", "all"), *overrides, timeout_s=1500)
    assert_same(runs)


@pytest.mark.distributed_exhaustive
@pytest.mark.parametrize(("workers", "layout"), LAYOUTS)
def test_generated_code_has_the_same_numbers_on_layouts(workers, layout):
    require_tool("g++", "g++")
    for runs in run_workers(workers, with_and_without, "inductor", ("all",), *layout, timeout_s=1500):
        assert_same(runs)


@pytest.mark.distributed_exhaustive
def test_a_compiled_run_that_was_stopped_and_resumed_is_to_the_bit_the_one_that_was_not(tmp_path):
    require_tool("g++", "g++")
    whole = run_workers(2, trained_on, tmp_path / "whole", 0, 4, timeout_s=1500)
    run_workers(2, trained_on, tmp_path / "halves", 0, 2, timeout_s=1500)
    halves = run_workers(2, trained_on, tmp_path / "halves", 2, 4, timeout_s=1500)
    for one, other in zip(whole, halves, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(value, other[name]) for name, value in one.items())
