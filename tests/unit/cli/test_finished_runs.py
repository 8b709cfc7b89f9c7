"""A run that has made all its steps, asked for again: nothing is answered "finished" that was not trained."""

from pathlib import Path

import pytest
from small_run import Command, tree

WAYS_ON = ("raise steps to train on", "--resume never", "another --run-dir")


def test_the_same_recipe_is_finished(moe_train: Command, run_dir: Path) -> None:
    before = tree(run_dir)
    ended = moe_train("run", "small.yaml", "--run-dir", str(run_dir))
    assert (ended.code, ended.errors) == (
        0,
        f"moe-train: {run_dir} is finished: it has trained all steps=6; raise steps to train on\n",
    )
    assert tree(run_dir) == before


def test_the_same_text_under_another_path_is_the_same_recipe(
    moe_train: Command, run_dir: Path, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(folder / "corpus")
    for path in ("corpus", str(tmp_path / "link")):
        words = ("run", "small.yaml", "--run-dir", str(run_dir), f"data.corpus.path={path}")
        assert moe_train(*words).code == 0


@pytest.mark.parametrize(
    ("override", "before"),
    [
        ("optim.lr=0.5", "0.001"),
        ("data.corpus.path=alone", "{folder}/corpus"),
        ("job.device=cuda", "auto"),
        ("log_every=1", "2"),
    ],
)
@pytest.mark.parametrize("is_marked", [True, False])
@pytest.mark.parametrize("command", ["run", "submit"])
def test_another_recipe_names_what_differs_and_the_ways_on(
    moe_train: Command,
    run_dir: Path,
    folder: Path,
    override: str,
    before: str,
    is_marked: bool,
    command: str,
) -> None:
    if not is_marked:  # killed between its last checkpoint and the note of its end
        (run_dir / "finished.json").unlink()
    state = tree(run_dir)
    ended = moe_train(command, "small.yaml", "--run-dir", str(run_dir), override)
    made = f"has trained all its 6 steps with {before.format(folder=folder)}"
    ended.refuses(f"{override}: ", made, *WAYS_ON)
    assert tree(run_dir) == state


def test_a_sweep_over_finished_runs_with_another_rate_is_no_success(
    moe_train: Command, run_dir: Path, tmp_path: Path
) -> None:
    run_dir.rename(tmp_path / "seed=0")
    words = ("sweep", "small.yaml", "seed=0,1", "--dir", str(tmp_path), "--dry-run")
    assert "seed=0" not in moe_train(*words).output
    moe_train(*words, "optim.lr=0.5").refuses("optim.lr=0.5: ", *WAYS_ON)


@pytest.mark.parametrize("command", ["run", "submit"])
@pytest.mark.parametrize("is_marked", [True, False])
def test_fewer_steps_than_were_made_are_refused(
    moe_train: Command, run_dir: Path, command: str, is_marked: bool
) -> None:
    if not is_marked:
        (run_dir / "finished.json").unlink()
    before = tree(run_dir)
    ended = moe_train(command, "small.yaml", "--run-dir", str(run_dir), "steps=3")
    ended.refuses(
        "steps=3: ", "has already trained 6 steps", "raise steps", "--resume STEP", "--resume never"
    )
    assert tree(run_dir) == before


@pytest.mark.parametrize("step", [4, 6])
def test_a_step_from_which_nothing_is_left_to_train_is_refused(
    moe_train: Command, run_dir: Path, step: int
) -> None:
    before = tree(run_dir)
    words = ("--run-dir", str(run_dir), "--resume", str(step), "steps=4")
    moe_train("run", "small.yaml", *words).refuses(f"--resume {step}: must be below steps=4", "raise steps")
    assert tree(run_dir) == before


@pytest.mark.parametrize("command", ["run", "show", "submit"])
def test_an_empty_recipe_is_refused(moe_train: Command, folder: Path, tmp_path: Path, command: str) -> None:
    (tmp_path / "empty.yaml").write_text("# all of it\n# is comments\n")
    before = tree(folder)
    moe_train(command, str(tmp_path / "empty.yaml")).refuses("empty.yaml: is empty", "name: ")
    assert tree(folder) == before


def test_commands_without_these_options_say_whose_they_are(
    moe_train: Command, run_dir: Path, tmp_path: Path
) -> None:
    options = "(--resume and --run-dir are options of `run` and `submit`)"
    moe_train("resume", str(run_dir), "optim.lr=0.5").refuses("optim.lr=0.5: ", options)
    run_dir.rename(tmp_path / "seed=0")
    words = ("sweep", "small.yaml", "seed=0,1", "--dir", str(tmp_path), "--dry-run")
    moe_train(*words, "optim.lr=0.5").refuses(options)
