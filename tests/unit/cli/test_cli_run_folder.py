"""Who may write to a run folder, and what a resume may change."""

import fcntl
import os
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from own_processes import wait_for
from small_run import Command

from moe_train.config.load import load_recipe
from moe_train.config.schema import Recipe
from moe_train.errors import RunError, UsageError
from moe_train.run_folder import LOCK_FILE, RunFolder, accept_recipe, attempt_recipe, mark_finished

ROOT = Path(__file__).parents[3]


@pytest.fixture
def recipe() -> Recipe:
    return Recipe(name="small", steps=20)


def test_attempts_are_numbered_from_1_and_never_reused(recipe: Recipe, tmp_path: Path) -> None:
    for expected in (1, 2, 3):
        with RunFolder(tmp_path / "run") as folder:
            assert folder.new_attempt(recipe) == expected
    assert sorted(os.listdir(tmp_path / "run/attempts")) == ["1", "2", "3"]


def test_the_saved_recipe_is_resolved_and_reads_back_equal(recipe: Recipe, tmp_path: Path) -> None:
    recipe.optim.lr = 0.1 + 0.2
    with RunFolder(tmp_path / "run") as folder:
        folder.new_attempt(recipe)
    assert load_recipe(tmp_path / "run/recipe.yaml") == recipe


def test_a_second_holder_is_refused_until_the_first_lets_go(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run"), pytest.raises(RunError, match="another moe-train is running in it"):
        RunFolder(tmp_path / "run").__enter__()
    with RunFolder(tmp_path / "run") as folder:
        assert not folder.holds_run


def test_who_asks_whether_a_run_is_held_does_not_keep_it_from_starting(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run"):
        pass
    asking = os.open(tmp_path / "run" / LOCK_FILE, os.O_RDONLY)
    fcntl.flock(asking, fcntl.LOCK_SH)
    answered = threading.Timer(0.3, os.close, [asking])
    answered.start()
    with RunFolder(tmp_path / "run") as folder:
        answered.join()
        assert folder.is_held()


def test_a_job_that_its_cluster_started_again_takes_its_folder_over(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", "slurm:7") as lost:
        assert not lost.is_of_same_job
        with RunFolder(tmp_path / "run", "slurm:7") as again:
            assert again.is_of_same_job
        with pytest.raises(RunError, match="another moe-train"):
            RunFolder(tmp_path / "run", "slurm:8").__enter__()


def test_a_launcher_that_was_given_up_knows_it_and_its_lock_passes_on(tmp_path: Path) -> None:
    lost = RunFolder(tmp_path / "run", "slurm:7").__enter__()
    assert not lost.is_taken_over()
    with RunFolder(tmp_path / "run", "slurm:7") as again:
        assert lost.is_taken_over()
        assert not again.is_taken_over()
        lost.__exit__(None, None, None)
        wait_for(again.is_held)
        with pytest.raises(RunError, match="another moe-train"):
            RunFolder(tmp_path / "run", "slurm:8").__enter__()
    with RunFolder(tmp_path / "run", "slurm:8") as other:
        assert not other.is_of_same_job


def test_a_run_that_was_to_start_afresh_does_so_once_in_a_job_that_is_started_again(
    moe_train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("run", "small.yaml", "--run-dir", str(tmp_path / "run"), "--resume", "never")
    assert moe_train(*words, "steps=2").code == 0
    monkeypatch.setenv("MOE_TRAIN_JOB", "slurm:7")
    (tmp_path / "run/jobs.jsonl").write_text("{}\n")
    (tmp_path / "run/jobs").mkdir()
    (tmp_path / "run/jobs/recipe-1.yaml").write_text("steps: 2\n")
    assert "it is now" in moe_train(*words, "steps=2").errors
    assert moe_train(*words, "steps=4").code == 0
    assert sorted(os.listdir(tmp_path)) == ["run", "run.old-1"]
    assert sorted(os.listdir(tmp_path / "run/attempts")) == ["1", "2"]
    assert (tmp_path / "run/jobs.jsonl").exists()
    assert (tmp_path / "run/jobs/recipe-1.yaml").exists()


def test_a_resume_may_change_what_is_neither_model_nor_data(recipe: Recipe, tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run") as folder:
        folder.new_attempt(recipe)
        recipe.steps, recipe.log_every, recipe.optim.lr = 40, 5, 1e-4
        recipe.parallel.expert, recipe.moe.capacity_factor, recipe.checkpoint.every = 2, None, 7
        recipe.data.corpus.path = "moved/here"  # the trainer checks that its text is the same
        folder.require_same_run(recipe)


def test_a_resume_may_place_the_same_moe_layers_in_other_words_but_no_others(
    recipe: Recipe, tmp_path: Path
) -> None:
    with RunFolder(tmp_path / "run") as folder:
        folder.new_attempt(recipe)
        recipe.moe.every, recipe.moe.layers = None, [1, 3]
        folder.require_same_run(recipe)
        recipe.moe.layers = [0, 2]
        with pytest.raises(
            UsageError, match=r"moe.layers=\[0, 2\]: .* has \[1, 3\], which a resume must keep"
        ):
            folder.require_same_run(recipe)


def test_a_resume_with_another_model_or_order_names_key_and_both_values(
    recipe: Recipe, tmp_path: Path
) -> None:
    with RunFolder(tmp_path / "run") as folder:
        folder.new_attempt(recipe)
        recipe.model.d_model, recipe.seed = 512, 1
        with pytest.raises(UsageError) as refused:
            folder.require_same_run(recipe)
    model, seed = str(refused.value).splitlines()
    assert model.startswith("model.d_model=512: ")
    assert "has 256, which a resume must keep" in model
    assert "--resume never" in model
    assert seed.startswith("seed=1: ")


def test_a_run_made_before_balance_had_a_place_says_what_a_recipe_of_today_would_change(
    recipe: Recipe, tmp_path: Path
) -> None:
    with RunFolder(tmp_path / "run") as folder:
        folder.new_attempt(recipe)
        saved = tmp_path / "run/recipe.yaml"
        saved.write_text(saved.read_text().replace("    balance_over: batch\n", ""))
        with pytest.raises(
            UsageError, match=r"moe.router.balance_over=batch: .* has group, which a resume must"
        ):
            folder.require_same_run(recipe)
        folder.require_same_run(folder.recipe())


def test_starting_afresh_moves_the_old_run_aside(recipe: Recipe, tmp_path: Path) -> None:
    for number in (1, 2):
        with RunFolder(tmp_path / "run") as folder:
            folder.new_attempt(recipe)
            assert folder.move_aside() == tmp_path / f"run.old-{number}"
            assert not folder.holds_run
            with pytest.raises(RunError):
                RunFolder(tmp_path / "run").__enter__()
            assert (tmp_path / f"run.old-{number}/attempts/1").is_dir()


def test_a_recipe_becomes_the_runs_own_when_it_is_accepted(recipe: Recipe, tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run") as folder:
        folder.new_attempt(recipe)
        other = Recipe(name="small", steps=40)
        assert folder.new_attempt(other) == 2
        assert folder.recipe() == recipe
        assert load_recipe(attempt_recipe(folder.path, 1)) == recipe
        assert load_recipe(attempt_recipe(folder.path, 2)) == other
        accept_recipe(folder.path, other)
        assert folder.recipe() == other


def test_a_finished_run_is_known_until_the_trainer_goes_on_with_it(recipe: Recipe, tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run") as folder:
        assert folder.finished_step() is None
        mark_finished(folder.path, 20)
        assert folder.finished_step() == 20
        folder.new_attempt(recipe)
        assert folder.finished_step() == 20
        accept_recipe(folder.path, recipe)
        assert folder.finished_step() is None


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_folder_that_may_not_be_written_is_one_clear_message() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "small.yaml").write_text("name: small\n")
        (folder / "run").mkdir(mode=0o555)
        arguments = ["run", str(folder / "small.yaml"), "--run-dir", str(folder / "run")]
        # The dry run imports what is needed: the other user may not be able to read this Python's folder.
        code = (
            f"import os, sys; sys.path[:0] = {[str(ROOT), str(ROOT / 'cluster')]!r}\n"
            "from moe_train.cli import main\n"
            f"main({[*arguments, '--dry-run']!r})\n"
            "os.setuid(65534)\n"
            f"sys.exit(main({arguments!r}))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    expected = f"moe-train: error: run_dir={folder / 'run'}: cannot be written (Permission denied: "
    assert done.returncode == 1
    assert done.stderr.startswith(expected)
    assert "another --run-dir" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("umask", [0o002, 0o077])
def test_all_files_of_a_run_have_the_users_umask(moe_train: Command, tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        assert moe_train("run", "small.yaml", "steps=2", "--run-dir", str(tmp_path / "run")).code == 0
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "run").rglob("*")}
    wrong = {
        str(path): oct(mode)
        for path, mode in modes.items()
        if mode != (0o777 if path.is_dir() else 0o666) & ~umask
    }
    assert wrong == {}
