"""Which runs a sweep stands for."""

import shutil
from pathlib import Path

import pytest
from small_run import Command

from moe_train.errors import UsageError
from moe_train.jobs.sweep import combinations, values


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed=0,1,2", ["seed=0", "seed=1", "seed=2"]),
        ("seed=0", ["seed=0"]),
        ("data.corpus.suffixes=[.md,.txt]", ["data.corpus.suffixes=[.md,.txt]"]),
        ("a=[1,2],[3]", ["a=[1,2]", "a=[3]"]),
        ("a={x: 1, y: 2},null", ["a={x: 1, y: 2}", "a=null"]),
        ("name='a,b',c", ["name='a,b'", "name=c"]),
    ],
)
def test_commas_outside_brackets_and_quotes_separate_values(override: str, expected: list[str]) -> None:
    assert values(override) == expected


def test_every_combination_is_a_run_named_by_what_varies() -> None:
    found = combinations(["steps=5", "seed=0,1", "optim.lr=1e-3,2e-3"])
    assert [name for name, _ in found] == [
        "seed=0,optim.lr=1e-3",
        "seed=0,optim.lr=2e-3",
        "seed=1,optim.lr=1e-3",
        "seed=1,optim.lr=2e-3",
    ]
    assert found[2][1] == ("steps=5", "seed=1", "optim.lr=1e-3")


def test_a_name_never_leaves_the_sweeps_folder() -> None:
    (first, _), (second, _) = combinations(["data.corpus.path=../../a,/etc"])
    assert "/" not in first + second


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["seed=0"], "no key has several values"),
        (["seed=1,1"], "two runs would share a folder"),
        (["a=/x,_x"], "two runs would share a folder"),
        ([f"name={'a' * 200},b"], "is not a valid folder name"),
    ],
)
def test_a_sweep_that_is_none_is_refused(overrides: list[str], part: str) -> None:
    with pytest.raises(UsageError, match=part):
        combinations(overrides)


def test_a_run_that_is_finished_is_not_submitted_until_the_recipe_has_more_steps(
    moe_train: Command, run_dir: Path, tmp_path: Path
) -> None:
    shutil.copytree(run_dir, tmp_path / "sweep/seed=0")

    def submitted(*words: str) -> list[str]:
        ended = moe_train(
            "sweep", "small.yaml", "seed=0,1", "--dir", str(tmp_path / "sweep"), "--dry-run", *words
        )
        return [Path(line[2:]).name for line in ended.output.splitlines() if line.startswith("# ")]

    assert submitted() == ["seed=1"]
    assert submitted("steps=8") == ["seed=0", "seed=1"]


def test_notes_of_a_layout_are_those_of_submit_and_once_for_all_runs_that_have_them(
    moe_train: Command, tmp_path: Path
) -> None:
    sizes = ("--nodes", "2", "--workers-per-node", "1", "--cluster", "slurm", "--dry-run")
    layout = ("parallel.tensor=2", "model.num_heads=2", "moe.every=0")
    single = moe_train("submit", "small.yaml", *layout, *sizes)
    (note,) = [line for line in single.errors.splitlines() if "parallel.tensor=2" in line]
    assert note.startswith("moe-train: note: parallel.tensor=2: does not divide the 1 workers of a node")
    swept = moe_train("sweep", "small.yaml", *layout, "log_every=1,99", "seed=0,1", *sizes)
    assert swept.errors.count(note) == 1
    (late,) = [line for line in swept.errors.splitlines() if "log_every=99" in line]
    assert late.endswith(" (log_every=99,seed=0; log_every=99,seed=1)")
    assert "log_every=1:" not in swept.errors


def test_results_name_what_was_never_submitted_and_do_not_call_it_done(
    moe_train: Command, run_dir: Path, tmp_path: Path
) -> None:
    words = ("sweep", "small.yaml", "seed=0,1", "--dir", str(tmp_path / "sweep"), "--results")
    shutil.copytree(run_dir, tmp_path / "sweep/seed=0")
    ended = moe_train(*words)
    assert (ended.code, "not submitted yet: seed=1\n" in ended.errors) == (1, True)
    shutil.copytree(run_dir, tmp_path / "sweep/seed=1")
    assert moe_train(*words).code == 0


def test_a_folder_with_another_run_is_not_taken_for_one_of_the_sweep(
    moe_train: Command, run_dir: Path, tmp_path: Path
) -> None:
    shutil.copytree(run_dir, tmp_path / "sweep/seed=0")
    ended = moe_train(
        "sweep", "small.yaml", "seed=0,1", "moe.num_experts=8", "--dir", str(tmp_path / "sweep")
    )
    ended.refuses("moe.num_experts=8: ", "has 4, which a resume must keep")
