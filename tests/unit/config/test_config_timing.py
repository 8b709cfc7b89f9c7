"""What comes too late for the number of steps is noted in `show` and at the start, and nothing else is."""

from pathlib import Path

import pytest

from moe_train.config.check import problems
from moe_train.config.load import load_recipe
from moe_train.config.notes import notes
from moe_train.config.timing import timing_notes

RECIPES = Path(__file__).parents[3] / "recipes"


@pytest.fixture
def noted(tmp_path: Path):
    path = tmp_path / "r.yaml"
    path.write_text("steps: 400\n")

    def of(*overrides: str) -> list[str]:
        recipe = load_recipe(path, overrides)
        assert not problems(recipe)
        found = list(timing_notes(recipe))
        assert set(found) <= set(notes(recipe))
        return found

    return of


@pytest.mark.parametrize(
    ("overrides", "note"),
    [
        (
            ["optim.schedule.warmup_steps=800", "optim.lr=0.02"],
            "optim.schedule.warmup_steps=800: the warm-up is longer than the run's steps=400, so the learning rate "
            "ends at 0.01 and never reaches optim.lr=0.02",
        ),
        (
            ["optim.schedule.kind=linear", "optim.schedule.warmup_steps=400"],
            "optim.schedule.warmup_steps=400: the warm-up takes all steps=400 of the run",
        ),
        (
            [
                "optim.schedule.kind=inverse_sqrt",
                "optim.schedule.warmup_steps=100",
                "optim.schedule.hold_steps=300",
            ],
            "optim.schedule.hold_steps=300: the run ends at steps=400, before the learning rate falls",
        ),
        (["log_every=500"], "log_every=500: is longer than the run's steps=400"),
        (["validate_every=500"], "validate_every=500: is longer than the run's steps=400"),
        (["checkpoint.every=500"], "checkpoint.every=500: is longer than the run's steps=400"),
        (["checkpoint.keep_every=500"], "checkpoint.keep_every=500: is longer than the run's steps=400"),
        (
            ["checkpoint.keep_every=150"],
            "checkpoint.keep_every=150: is not a multiple of checkpoint.every=100, so only one every 300 steps is kept",
        ),
        (
            ["checkpoint.keep_every=399"],
            "checkpoint.keep_every=399: is not a multiple of checkpoint.every=100, so none is kept",
        ),
        (
            ["checkpoint.keep_every=100", "checkpoint.keep_last=0"],
            "checkpoint.keep_every=100: has no effect, because checkpoint.keep_last=0 keeps all",
        ),
        (
            ["checkpoint.keep_every=100", "checkpoint.every=0"],
            "checkpoint.keep_every=100: has no effect, because checkpoint.every=0 writes no checkpoint before the end",
        ),
        (
            ["stability.rollback=true", "stability.spike_window=400"],
            "stability.spike_window=400: the run ends at steps=400, before there are that many losses",
        ),
        (
            ["steps=100", "stability.rollback=true", "stability.spike_window=50"],
            "stability.rollback=true: checkpoint.every=100 writes none before the end at steps=100",
        ),
    ],
)
def test_what_the_run_never_reaches_is_noted(noted, overrides: list[str], note: str) -> None:
    (found,) = noted(*overrides)
    assert found.startswith(note)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["steps=4"],  # shorter than what the defaults have for intervals, which nobody chose
        ["optim.schedule.warmup_steps=399", "log_every=400", "validate_every=400", "checkpoint.every=400"],
        [
            "optim.schedule.kind=inverse_sqrt",
            "optim.schedule.warmup_steps=100",
            "optim.schedule.hold_steps=299",
        ],
        ["checkpoint.keep_every=200", "stability.rollback=true", "stability.spike_window=399"],
    ],
)
def test_what_the_run_reaches_is_not(noted, overrides: list[str]) -> None:
    assert noted(*overrides) == []


@pytest.mark.parametrize(
    "recipe", sorted(RECIPES.glob("[!_]*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_no_shipped_recipe_has_a_key_that_its_run_never_reaches(recipe: Path) -> None:
    assert list(timing_notes(load_recipe(recipe))) == []


@pytest.mark.parametrize("kind", ["cosine", "linear"])
@pytest.mark.parametrize("fraction", ["-0.1", "1.5"])
def test_a_rate_below_zero_or_above_its_peak_is_a_problem(tmp_path: Path, kind: str, fraction: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(f"optim: {{schedule: {{kind: {kind}, final_fraction: {fraction}}}}}")
    assert [problem.key for problem in problems(load_recipe(path))] == ["optim.schedule.final_fraction"]
