"""A job whose nodes die is started again by its cluster, but not for ever."""

from collections.abc import Callable
from pathlib import Path

import pytest
from small_run import Command

from moe_train.config.load import load_recipe
from moe_train.requeue import lost_in_vain
from moe_train.run_folder import RunFolder

Lose = Callable[[str], str]


@pytest.fixture
def lose(moe_train: Command, tmp_path: Path) -> Lose:
    """A launcher of a job makes an attempt, and dies with its node; returns why it makes none."""
    recipe = load_recipe(Path("small.yaml"))

    def start(job: str) -> str:
        with RunFolder(tmp_path / "run", job) as folder:
            if folder.is_of_same_job and (why := lost_in_vain(folder)):
                return why
            folder.new_attempt(recipe)
            return ""

    return start


def test_a_job_that_loses_its_nodes_again_and_again_ends_and_a_new_one_may_try(
    moe_train: Command, lose: Lose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    assert [lose("slurm:7") for _ in range(4)] == [""] * 4
    monkeypatch.setenv("MOE_TRAIN_JOB", "slurm:7")
    ended = moe_train("run", "small.yaml", "--run-dir", str(run_dir), "steps=2")
    assert ended.code == 1
    assert "4 times in a row before anything new was saved" in ended.errors
    assert "(attempts 1, 2, 3, 4); no further attempt is made" in ended.errors
    assert f"moe-train resume {run_dir}" in ended.errors
    assert len(list((run_dir / "attempts").iterdir())) == 4
    assert [lose("slurm:8") for _ in range(4)] == [""] * 4
    assert "(attempts 5, 6, 7, 8)" in lose("slurm:8")


def test_an_attempt_that_saved_starts_the_count_afresh(
    moe_train: Command, lose: Lose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [lose("slurm:7") for _ in range(3)] == [""] * 3
    monkeypatch.setenv("MOE_TRAIN_JOB", "slurm:7")
    ended = moe_train("run", "small.yaml", "--run-dir", str(tmp_path / "run"), "steps=2")
    assert ended.code == 0  # attempt 4 saves
    (tmp_path / "run/attempts/4/outcome.json").unlink()  # as if its node had died then
    assert [lose("slurm:7") for _ in range(4)] == [""] * 4
    assert "(attempts 5, 6, 7, 8)" in lose("slurm:7")
