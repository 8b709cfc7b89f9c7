"""A resume says which keys it changes, from what to what, and what that makes of the learning rate."""

import math
from pathlib import Path

import pytest

from moe_train.config.load import load_recipe
from moe_train.resume_report import changes_from, next_rate


@pytest.fixture
def recipe(tmp_path: Path):
    path = tmp_path / "r.yaml"
    path.write_text("steps: 100\noptim: {lr: 0.01}\n")
    return lambda *overrides: load_recipe(path, overrides)


def test_a_cosine_that_is_stretched_says_how_much_higher_the_rate_is(recipe) -> None:
    steps, rates = list(changes_from(recipe(), recipe("steps=200"), 100))
    assert steps == "steps=200: changed from 100 by this resume"
    # The cosine of 100 steps is at its end, a tenth of the peak; that of 200 is half way down: (1 + 0.1) / 2.
    assert rates == (
        "the learning rate at step 101 is 0.0055, 5.5 times as much, not 0.001 as with the previous recipe; the "
        "cosine schedule now ends at step 200, not 100: set optim.schedule.kind=constant and optim.lr to keep a rate"
    )


@pytest.mark.parametrize("step", [0, 1, 37, 99])
def test_the_rate_is_that_of_the_next_update(recipe, step: int) -> None:
    expected = 0.01 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / 100)))
    assert next_rate(recipe(), step) == pytest.approx(expected, rel=1e-12)
    assert next_rate(recipe("optim.schedule.warmup_steps=100"), step) == pytest.approx(
        0.01 * (step + 1) / 100
    )


def test_every_changed_key_is_said_with_both_values(recipe) -> None:
    before = recipe("job.threads=2", "data.corpus.path=null")
    now = recipe(
        "job.threads=null",
        "optim.clip=0.5",
        "precision=bf16",
        "optim.schedule.kind=linear",
        "checkpoint.every=7",
    )
    *keys, rate = changes_from(before, now, 50)
    assert keys == [
        "checkpoint.every=7: changed from 100 by this resume",
        "job.threads=null: changed from 2 by this resume",
        "optim.clip=0.5: changed from 1.0 by this resume",
        "optim.schedule.final_fraction=0.0: changed from 0.1 by this resume",
        "optim.schedule.kind=linear: changed from cosine by this resume",
        "precision=bf16: changed from fp32 by this resume",
    ]
    assert rate == (
        "the learning rate at step 51 is 0.005, 0.909 times as much, not 0.0055 as with the previous recipe"
    )


def test_nothing_is_said_of_a_resume_that_changes_nothing(recipe) -> None:
    assert list(changes_from(recipe(), recipe(), 50)) == []


def test_a_change_that_leaves_the_rate_says_nothing_of_it(recipe) -> None:
    constant = "optim.schedule.kind=constant"
    assert list(changes_from(recipe(constant), recipe(constant, "steps=200"), 100)) == [
        "steps=200: changed from 100 by this resume"
    ]
    # From a rate of 0 nothing is a multiple.
    ended = recipe("optim.schedule.kind=linear")
    assert (
        "times" not in list(changes_from(ended, recipe("optim.schedule.kind=linear", "steps=200"), 100))[-1]
    )
