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


def steps_of(run_dir: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (run_dir / "checkpoints").glob("step_????????"))


def latest(run_dir: Path) -> str:
    return (run_dir / "checkpoints" / "latest").read_text().strip()


def on_a_terminal(monkeypatch, answer: str) -> list[str]:
    """Have questions answered, and return a list that each of them will be added to."""
    asked: list[str] = []

    def asking(question: str) -> str:
        asked.append(question)
        if answer == "end of file":
            raise EOFError
        return answer

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", asking)
    return asked


@pytest.fixture
def gone_back(tmp_path: Path) -> Path:
    """Attempt 1 saved 10, 20 and 30; attempt 2 went back to 10 and has saved 15: 20 and 30 are newer, and fenced."""
    record_start(tmp_path, 1, None)
    origin = Origin(1, 10, read_identity(tmp_path).id)
    for attempt, resumed_from, steps in ((1, None, (10, 20, 30)), (2, origin, (15,))):
        record_start(tmp_path, attempt, resumed_from)
        checkpointer = Checkpointer(
            tmp_path, CheckpointConfig(asynchronous=False, keep_last=0), one_rank(attempt)
        )
        for step in steps:
            checkpointer.save(step, state(0, 1, 1), {})
    (tmp_path / "recipe.yaml").write_text("name: x\ncheckpoint: {keep_last: 0}\n")
    return tmp_path


def test_gc_removes_newer_work_of_a_superseded_attempt_only_after_a_yes(gone_back, monkeypatch, capsys):
    assert main(["gc", str(gone_back), "--dry-run"]) == 0
    with pytest.raises(UsageError, match=r"step_00000020, step_00000030 of a superseded attempt.*add --yes"):
        main(["gc", str(gone_back)])  # tests have no terminal
    for answer in ("", "n", "what?", "end of file"):
        asked = on_a_terminal(monkeypatch, answer)
        assert main(["gc", str(gone_back)]) == 1
        assert asked == [
            "Remove step_00000020, step_00000030 of a superseded attempt, newer than step 15, which a resume would "
            "use? [y/N] "
        ]
    assert steps_of(gone_back) == [10, 15, 20, 30]
    on_a_terminal(monkeypatch, "y")
    assert main(["gc", str(gone_back)]) == 0
    assert steps_of(gone_back) == [10, 15]
    assert "step_00000020" in capsys.readouterr().out


def test_gc_with_yes_asks_nothing(gone_back):
    assert main(["gc", str(gone_back), "--yes"]) == 0
    assert steps_of(gone_back) == [10, 15]


def test_gc_keeps_as_many_as_it_is_told_to(run_dir):
    assert main(["gc", str(run_dir), "--keep-last", "2"]) == 0  # without a recipe, too
    assert steps_of(run_dir) == [30, 40]
    (run_dir / "recipe.yaml").write_text("name: x\ncheckpoint: {keep_last: 3, keep_every: 30}\n")
    assert main(["gc", str(run_dir), "--keep-last", "1"]) == 0
    assert steps_of(run_dir) == [30, 40]  # 30 is kept for good
    (run_dir / "recipe.yaml").write_text("name: x\ncheckpoint: {keep_last: 3}\n")
    assert main(["gc", str(run_dir), "--keep-last", "1"]) == 0
    assert steps_of(run_dir) == [40]
    with pytest.raises(SystemExit):
        main(["gc", str(run_dir), "--keep-last", "0"])


def test_rm_removes_one_step(run_dir):
    assert main(["rm", str(run_dir), "--step", "30"]) == 0
    assert main(["rm", str(run_dir / "checkpoints/step_00000020")]) == 0
    assert steps_of(run_dir) == [10, 40]
    assert latest(run_dir) == "step_00000040"
    with pytest.raises(UsageError, match=r"--step=30: .* has no such checkpoint"):
        main(["rm", str(run_dir), "--step", "30"])
    with pytest.raises(UsageError, match="needs one checkpoint"):
        main(["rm", str(run_dir)])


def test_rm_of_the_one_in_use_needs_a_yes_and_leaves_a_sound_run(run_dir, monkeypatch):
    with pytest.raises(UsageError, match=r"step_00000040 of .*, which a resume would use.* add --yes"):
        main(["rm", str(run_dir), "--step", "40"])
    asked = on_a_terminal(monkeypatch, "n")
    assert main(["rm", str(run_dir), "--step", "40"]) == 1
    assert len(asked) == 1
    assert steps_of(run_dir) == [10, 20, 30, 40]
    assert main(["rm", str(run_dir), "--step", "40", "--yes"]) == 0
    assert latest(run_dir) == "step_00000030"
    assert main(["verify", str(run_dir)]) == 0
    for step in ("10", "20", "30"):
        assert main(["rm", str(run_dir), "--step", step, "--yes"]) == 0
    assert not (run_dir / "checkpoints" / "latest").exists()


@pytest.mark.parametrize("command", ["ls", "verify", "rm", "gc"])
def test_a_run_is_found_by_its_name_below_runs(run_dir, tmp_path_factory, monkeypatch, command):
    place = tmp_path_factory.mktemp("place")
    (place / "runs").mkdir()
    shutil.copytree(run_dir, place / "runs" / "mine")
    monkeypatch.chdir(place)
    arguments = ["--step", "30"] if command == "rm" else []
    assert main([command, "mine", *arguments]) == 0
    if command != "gc":
        assert main([command, "runs/mine/checkpoints/step_00000010"]) == 0
    with pytest.raises(UsageError, match=r"RUN=other: .*known runs: mine"):
        main([command, "other", *arguments])


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
