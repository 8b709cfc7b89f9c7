"""Which run a folder holds: a copy is another run, a folder that was moved is the same one."""

import shutil
from pathlib import Path

import pytest

from moe_train.errors import RunError
from moe_train.identity import Origin, begin_attempt, is_same_run, read_identity


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    path.mkdir()
    return path


def test_an_id_is_drawn_once_and_the_highest_number_is_kept(run_dir: Path) -> None:
    assert read_identity(run_dir) is None
    first = begin_attempt(run_dir, 2)
    second = begin_attempt(run_dir, 1)
    assert (second.id, second.last_attempt) == (first.id, 2)
    assert read_identity(run_dir) == second


def test_a_copy_draws_another_id_and_names_its_parent(run_dir: Path) -> None:
    first = begin_attempt(run_dir, 3)
    copy = shutil.copytree(run_dir, run_dir.with_name("copy"))
    second = begin_attempt(copy, 4)
    assert second.id != first.id
    assert (second.parent, second.last_attempt) == (str(run_dir), 4)
    assert begin_attempt(copy, 5).id == second.id
    assert begin_attempt(run_dir, 4).id == first.id


@pytest.mark.parametrize("across", [False, True], ids=["renamed", "to another disk"])
def test_a_folder_that_was_moved_is_the_same_run(run_dir: Path, across: bool) -> None:
    first = begin_attempt(run_dir, 1)
    moved = run_dir.with_name("moved")
    if across:
        shutil.copytree(run_dir, moved)
        shutil.rmtree(run_dir)
    else:
        run_dir.rename(moved)
    assert begin_attempt(moved, 2).id == first.id


def test_a_checkpoint_without_an_id_is_of_the_run_that_is_no_fork(run_dir: Path) -> None:
    assert is_same_run(run_dir, Origin(1, 100))
    identity = begin_attempt(run_dir, 1)
    assert is_same_run(run_dir, Origin(1, 100))
    assert is_same_run(run_dir, Origin(1, 100, identity.id))
    assert not is_same_run(run_dir, Origin(1, 100, "another"))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"id": 1}'])
def test_a_damaged_file_is_named_and_not_replaced(run_dir: Path, content: str) -> None:
    (run_dir / "run.json").write_text(content)
    with pytest.raises(RunError, match=r"run\.json, which identifies the run, cannot be read"):
        begin_attempt(run_dir, 1)
    assert (run_dir / "run.json").read_text() == content
