"""Which checkpoints an attempt may use, and what a superseded one may still do."""

import shutil
from math import inf
from pathlib import Path

import pytest
import torch
from checkpoint_states import state
from threaded_ranks import one_rank, run_ranks

from moe_train.checkpoint.checkpointer import Checkpointer
from moe_train.checkpoint.folder import CheckpointFolder
from moe_train.checkpoint.layout import Shard
from moe_train.checkpoint.lineage import last_number, limits, record_start, unexplained_steps
from moe_train.checkpoint.manifest import read_manifest
from moe_train.config.schema import CheckpointConfig
from moe_train.errors import CheckpointError
from moe_train.identity import Origin, read_identity


def checkpointer(run_dir: Path, attempt: int, **config) -> Checkpointer:
    return Checkpointer(
        run_dir, CheckpointConfig(asynchronous=False, **({"keep_last": 0} | config)), one_rank(attempt)
    )


def save(run_dir: Path, attempt: int, *steps: int, **config) -> None:
    saver = checkpointer(run_dir, attempt, **config)
    for step in steps:
        saver.save(step, state(0, 1, 1, seed=attempt), {"by": attempt})


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").glob("step*"))


def test_limits_follow_the_chain_of_resumes(tmp_path):
    assert limits(tmp_path, 1) == {}
    record_start(tmp_path, 1, None)
    run = read_identity(tmp_path).id
    assert limits(tmp_path, 2) == {(run, 1): inf}
    record_start(tmp_path, 2, Origin(1, 300, run))
    (tmp_path / "attempts" / "3").mkdir()  # died before it started
    record_start(tmp_path, 4, Origin(2, 500, run))
    assert limits(tmp_path, 3) == {(run, 2): inf, (run, 1): 300}
    assert limits(tmp_path, 5) == {(run, 4): inf, (run, 2): 500, (run, 1): 300}
    record_start(tmp_path, 5, Origin(1, 100, run))
    assert limits(tmp_path, 6) == {(run, 5): inf, (run, 1): 100}
    record_start(tmp_path, 6, None)
    assert limits(tmp_path, 7) == {(run, 6): inf}


def test_what_a_superseded_attempt_committed_is_never_selected(tmp_path):
    record_start(tmp_path, 1, None)
    save(tmp_path, 1, 100, 200)
    record_start(
        tmp_path, 2, Origin(1, 100, read_identity(tmp_path).id)
    )  # 200 is what attempt 1 commits after attempt 2 has chosen
    third = checkpointer(tmp_path, 3)
    assert third.steps() == [100]
    assert third.choose("latest").step == 100
    with pytest.raises(CheckpointError, match="superseded"):
        third.choose(200)
    save(tmp_path, 2, 300)
    assert third.choose("latest").step == 300


def test_a_superseded_attempt_refuses_to_commit(tmp_path):
    record_start(tmp_path, 1, None)
    zombie = checkpointer(tmp_path, 1)
    zombie.save(100, state(0, 1, 1), {})
    (tmp_path / "attempts" / "2").mkdir()
    with pytest.raises(CheckpointError, match="attempt 1 is superseded by attempt 2"):
        zombie.save(200, state(0, 1, 1), {})
    assert names(tmp_path) == ["step_00000100"]


def test_a_fenced_checkpoint_of_the_same_step_is_moved_aside(tmp_path):
    record_start(tmp_path, 1, None)
    save(tmp_path, 1, 100, 200)
    record_start(tmp_path, 2, Origin(1, 100, read_identity(tmp_path).id))
    save(tmp_path, 2, 200)
    assert names(tmp_path) == ["step_00000100", "step_00000200", "step_00000200.fenced-1"]
    assert checkpointer(tmp_path, 3).choose(200).manifest.meta == {"by": 2}


def test_a_fenced_checkpoint_is_not_taken_for_the_success_of_a_failed_save(tmp_path):
    record_start(tmp_path, 1, None)
    save(tmp_path, 1, 100)
    record_start(tmp_path, 2, None)

    def rank_main(world):
        hole = {"w": [Shard(torch.ones(1), (3,), (world.rank,))]}
        Checkpointer(tmp_path, CheckpointConfig(asynchronous=False), world).save(100, hole, {})

    for result in run_ranks(2, rank_main, attempt=2):
        assert "w has 1 of 3 elements that no rank writes" in str(result)


def test_a_step_that_is_on_the_lineage_already_stays_as_it_is(tmp_path):
    record_start(tmp_path, 1, None)
    save(tmp_path, 1, 100)
    record_start(tmp_path, 2, Origin(1, 100, read_identity(tmp_path).id))
    save(tmp_path, 2, 100)
    assert names(tmp_path) == ["step_00000100"]
    assert checkpointer(tmp_path, 3).choose(100).manifest.attempt == 1


def test_starting_anew_forgets_what_came_before(tmp_path):
    record_start(tmp_path, 1, None)
    save(tmp_path, 1, 100)
    record_start(tmp_path, 2, None)
    assert checkpointer(tmp_path, 3).choose("latest") is None


def test_an_unreadable_start_is_an_error_and_not_a_new_run(tmp_path):
    record_start(tmp_path, 1, None)
    save(tmp_path, 1, 100)
    (tmp_path / "attempts" / "1" / "start.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"start.json: cannot be read"):
        checkpointer(tmp_path, 2).choose("latest")


def test_retention_keeps_the_newest_and_every_nth(tmp_path):
    record_start(tmp_path, 1, None)
    save(tmp_path, 1, *range(10, 80, 10), keep_last=2, keep_every=30)
    assert names(tmp_path) == [f"step_{step:08d}" for step in (30, 60, 70)]


def test_a_commit_cleans_up_after_dead_attempts_and_leaves_fenced_ones(tmp_path):
    record_start(tmp_path, 1, None)
    save(tmp_path, 1, 100, 200)
    for name in ("step_00000300.tmp-1", "step_00000050.deleted-1"):
        (tmp_path / "checkpoints" / name).mkdir()
    record_start(tmp_path, 2, Origin(1, 100, read_identity(tmp_path).id))
    save(tmp_path, 2, 150, keep_last=1)
    assert names(tmp_path) == ["step_00000150", "step_00000200"]


def test_a_checkpoint_of_another_run_under_the_same_numbers_is_never_taken_for_saved(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for run_dir in (one, other):
        record_start(run_dir, 1, None)
    save(other, 1, 100, 200)
    shutil.copytree(other / "checkpoints", one / "checkpoints")
    checkpoints = CheckpointFolder(one)
    assert unexplained_steps(checkpoints) == [100, 200]
    assert checkpointer(one, 1).steps() == []
    assert checkpointer(one, 2).choose("latest") is None
    with pytest.raises(CheckpointError, match="was written by no attempt of this run"):
        checkpointer(one, 2).choose(200)
    save(one, 1, 100)
    assert names(one) == ["step_00000100", "step_00000100.fenced-1", "step_00000200"]
    assert read_manifest(checkpoints.committed(100)).run == read_identity(one).id
    assert checkpointer(one, 2).choose("latest").step == 100
    assert unexplained_steps(checkpoints) == [200]


def test_numbers_of_attempts_outlive_their_folders(tmp_path):
    for number in (1, 2, 3):
        record_start(tmp_path, number, None)
    save(tmp_path, 3, 100)
    shutil.rmtree(tmp_path / "attempts")
    assert last_number(tmp_path) == 3
    (tmp_path / "run.json").unlink()
    assert last_number(tmp_path) == 3
