"""`moe-train ckpt`."""

import os
import shutil
from pathlib import Path

import pytest
from checkpoint_states import state
from threaded_ranks import one_rank

from moe_train.checkpoint.checkpointer import Checkpointer
from moe_train.checkpoint.commands import main
from moe_train.checkpoint.lineage import record_start
from moe_train.checkpoint.verify import verify
from moe_train.config.schema import CheckpointConfig
from moe_train.errors import UsageError
from moe_train.identity import Origin, read_identity


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Attempt 1 saved 10 and 20, attempt 2 went on from 10 and saved 30 and 40."""
    record_start(tmp_path, 1, None)
    origin = Origin(1, 10, read_identity(tmp_path).id)
    for attempt, resumed_from, steps in ((1, None, (10, 20)), (2, origin, (30, 40))):
        record_start(tmp_path, attempt, resumed_from)
        config = CheckpointConfig(asynchronous=False, keep_last=0)
        checkpointer = Checkpointer(tmp_path, config, one_rank(attempt))
        for step in steps:
            checkpointer.save(step, state(0, 1, 1), {})
    return tmp_path


def test_ls_shows_what_a_resume_may_use(run_dir, capsys):
    assert main(["ls", str(run_dir)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [(line[0], line[1], line[-1]) for line in lines[1:]] == [
        ("10", "1", "eligible"),
        ("20", "1", "fenced"),
        ("30", "2", "eligible"),
        ("40", "2", "eligible"),
    ]


def test_verify_of_a_good_run_ends_with_0(run_dir, capsys):
    assert main(["verify", str(run_dir)]) == 0
    assert capsys.readouterr().out.splitlines() == [f"step_{step:08d}: good" for step in (10, 20, 30, 40)]


def test_verify_names_the_bad_file_and_ends_with_1(run_dir, capsys):
    victim = run_dir / "checkpoints" / "step_00000030" / "rank-00000.safetensors"
    victim.unlink()
    assert main(["verify", str(run_dir)]) == 1
    assert f"{victim}: is missing" in capsys.readouterr().out
    assert main(["verify", str(run_dir), "--step", "40"]) == 0
    assert main(["verify", str(victim.parent)]) == 1


def test_verify_finds_a_latest_that_points_nowhere(run_dir, capsys):
    (run_dir / "checkpoints" / "latest").write_text("step_00000099\n")
    assert main(["verify", str(run_dir)]) == 1
    assert "names 'step_00000099'" in capsys.readouterr().out


def test_a_kill_between_a_commit_and_latest_leaves_nothing_bad(run_dir, capsys):
    latest = run_dir / "checkpoints" / "latest"
    latest.write_text("step_00000030\n")
    assert main(["verify", str(run_dir)]) == 0
    latest.unlink()
    assert main(["verify", str(run_dir)]) == 0


def test_a_checkpoint_that_a_running_run_removes_is_not_bad(run_dir, capsys, monkeypatch):
    def verify_while_it_goes(checkpoint: Path) -> list[str]:
        if checkpoint.name == "step_00000010":
            shutil.rmtree(checkpoint)
        return verify(checkpoint)

    monkeypatch.setattr("moe_train.checkpoint.commands.verify", verify_while_it_goes)
    assert main(["verify", str(run_dir)]) == 0
    assert "step_00000010: removed meanwhile by the run" in capsys.readouterr().out


def test_gc_removes_leftovers_and_fenced_ones_and_what_is_beyond_retention(run_dir, capsys):
    root = run_dir / "checkpoints"
    (run_dir / "recipe.yaml").write_text("name: x\ncheckpoint: {keep_last: 1, keep_every: 10}\n")
    for name in ("step_00000050.tmp-1", "step_00000050.tmp-2", "step_00000020.fenced-1"):
        (root / name).mkdir()
    before = sorted(path.name for path in root.iterdir())
    assert main(["gc", str(run_dir), "--dry-run"]) == 0
    assert sorted(path.name for path in root.iterdir()) == before
    assert main(["gc", str(run_dir)]) == 0
    assert "keeping step_00000050.tmp-2: attempt 2 may be writing it" in capsys.readouterr().out
    kept = ["latest", "step_00000010", "step_00000030", "step_00000040", "step_00000050.tmp-2"]
    assert sorted(path.name for path in root.iterdir()) == kept

    (run_dir / "recipe.yaml").write_text("name: x\ncheckpoint: {keep_last: 1}\n")
    os.utime(root / "step_00000050.tmp-2", (0, 0))
    assert main(["gc", str(run_dir)]) == 0
    assert sorted(path.name for path in root.iterdir()) == ["latest", "step_00000040"]


def test_gc_keeps_the_newest_good_one_when_newer_ones_are_bad(run_dir):
    (run_dir / "recipe.yaml").write_text("name: x\ncheckpoint: {keep_last: 1}\n")
    (run_dir / "checkpoints" / "step_00000040" / "rank-00000.safetensors").write_bytes(b"")
    main(["gc", str(run_dir)])
    assert sorted(path.name for path in (run_dir / "checkpoints").glob("step*")) == [
        "step_00000030",
        "step_00000040",
    ]


def test_a_folder_that_is_no_run_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="has no folder checkpoints"):
        main(["ls", str(tmp_path)])


def test_checkpoints_that_no_attempt_explains_are_shown_and_kept(run_dir, capsys):
    shutil.rmtree(run_dir / "attempts")
    assert main(["ls", str(run_dir)]) == 0
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()[1:]] == ["unexplained"] * 4
    before = sorted(os.listdir(run_dir / "checkpoints"))
    main(["gc", str(run_dir)])
    assert "keeping step_00000010: written by no attempt on record here" in capsys.readouterr().out
    assert sorted(os.listdir(run_dir / "checkpoints")) == before
