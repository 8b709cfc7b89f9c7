"""Checkpoints without the records of the attempts that wrote them: no run takes them for its own or starts over them.

A folder gets that way when it is tidied, or when only its checkpoints are copied to another machine.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from small_run import Command, contents, last_validation, tree

from moe_train.checkpoint.manifest import read_manifest
from moe_train.identity import read_identity
from moe_train.monitor.run import read_run


def without_attempts(run_dir: Path) -> None:
    """Remove all that tells of attempts."""
    shutil.rmtree(run_dir / "attempts")
    (run_dir / "finished.json").unlink()


def only_checkpoints(run_dir: Path) -> None:
    """Leave nothing but the checkpoints."""
    without_attempts(run_dir)
    for path in run_dir.iterdir():
        if path.is_file():
            path.unlink()


TIDYING = pytest.mark.parametrize("tidy", [without_attempts, only_checkpoints])


@TIDYING
@pytest.mark.parametrize("overrides", [[], ["seed=7"], ["steps=8"], ["model.d_model=32"]])
@pytest.mark.parametrize("command", ["run", "submit"])
def test_they_are_not_started_over(
    moe_train: Command, run_dir: Path, tidy: Callable[[Path], None], overrides: list[str], command: str
) -> None:
    tidy(run_dir)
    before = tree(run_dir.parent)
    moe_train(command, "small.yaml", "--run-dir", str(run_dir), *overrides).refuses(
        "the checkpoints of steps 2, 4, 6 were not written by any of its attempts",
        "resume with --resume 6",
        "start afresh with --resume never",
        "another --run-dir",
    )
    assert tree(run_dir.parent) == before


@TIDYING
@pytest.mark.parametrize(("override", "saved"), [("seed=7", "has 0"), ("model.d_model=32", "has 16")])
def test_a_recipe_with_another_seed_or_model_does_not_take_them(
    moe_train: Command, run_dir: Path, tidy: Callable[[Path], None], override: str, saved: str
) -> None:
    tidy(run_dir)
    before = tree(run_dir.parent)
    words = ("--run-dir", str(run_dir), "--resume", "6", "steps=8", override)
    moe_train("run", "small.yaml", *words).refuses(f"{override}: ", saved, "which a resume must keep")
    assert tree(run_dir.parent) == before


@TIDYING
def test_a_step_that_is_named_is_resumed_exactly(
    moe_train: Command, run_dir: Path, straight: float, tidy: Callable[[Path], None]
) -> None:
    tidy(run_dir)
    words = ("run", "small.yaml", "--run-dir", str(run_dir), "steps=8")
    assert moe_train(*words, "--resume", "4").code == 0
    assert last_validation(run_dir) == straight
    assert [path.name for path in (run_dir / "attempts").iterdir()] == ["2"], "a number is given once"
    written = {step: read_manifest(run_dir / f"checkpoints/step_{step:08d}").attempt for step in (4, 6, 8)}
    assert written == {4: 1, 6: 2, 8: 2}
    assert (run_dir / "checkpoints/step_00000006.fenced-1").is_dir()
    assert moe_train(*words).code == 0, "and the run goes on as any other"


@TIDYING
def test_starting_afresh_moves_them_aside_and_saves_this_runs_own(
    moe_train: Command, run_dir: Path, tidy: Callable[[Path], None]
) -> None:
    tidy(run_dir)
    before = contents(run_dir / "checkpoints")
    assert moe_train("run", "small.yaml", "--run-dir", str(run_dir), "--resume", "never", "seed=7").code == 0
    assert contents(run_dir.with_name("run.old-1") / "checkpoints") == before
    identity = read_identity(run_dir)
    assert identity is not None
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    for step in [row["step"] for row in rows if row.get("event") == "checkpoint"]:
        manifest = read_manifest(run_dir / f"checkpoints/step_{step:08d}")
        assert (manifest.run, manifest.meta["recipe"]["seed"]) == (identity.id, 7)


@pytest.mark.parametrize("has_identity", [True, False])
def test_numbers_of_attempts_go_on_where_only_rows_are_left(
    moe_train: Command, run_dir: Path, has_identity: bool
) -> None:
    without_attempts(run_dir)
    if not has_identity:
        (run_dir / "run.json").unlink()
    shutil.rmtree(run_dir / "checkpoints")
    assert moe_train("run", "small.yaml", "--run-dir", str(run_dir), "steps=2").code == 0
    assert [path.name for path in (run_dir / "attempts").iterdir()] == ["2"]
    assert read_run(run_dir).training[-1]["step"] == 2, "what the tidied run wrote is replaced"


@pytest.mark.parametrize("is_finished", [True, False])
def test_a_run_whose_checkpoints_are_gone_does_not_begin_again(
    moe_train: Command, run_dir: Path, is_finished: bool
) -> None:
    shutil.rmtree(run_dir / "checkpoints")
    if not is_finished:
        (run_dir / "finished.json").unlink()
    before = tree(run_dir.parent)
    words = ("run", "small.yaml", "--run-dir", str(run_dir))
    moe_train(*words, "steps=8").refuses("had saved step 6", "has no checkpoint any more", "--resume never")
    assert tree(run_dir.parent) == before
    assert moe_train(*words).code == (0 if is_finished else 2)


def test_a_folder_of_an_older_version_goes_on_as_before(
    moe_train: Command, run_dir: Path, straight: float
) -> None:
    (run_dir / "run.json").unlink()
    start = run_dir / "attempts/1/start.json"
    start.write_text(json.dumps({"attempt": 1, "resumed_from": None}))
    for step in (2, 4, 6):
        make_older(run_dir / f"checkpoints/step_{step:08d}")
    assert moe_train("run", "small.yaml", "--run-dir", str(run_dir), "steps=8").code == 0
    assert last_validation(run_dir) == straight
    assert sorted(path.name for path in (run_dir / "attempts").iterdir()) == ["1", "2"]
    assert moe_train("run", "small.yaml", "--run-dir", str(run_dir), "steps=10").code == 0


def make_older(checkpoint: Path) -> None:
    """Take from a manifest what older versions did not write, with a digest as they did."""
    path = checkpoint / "manifest.json"
    data = json.loads(path.read_bytes())
    del data["digest"], data["run"], data["meta"]["recipe"]
    digest = hashlib.sha256(canonical(data)).hexdigest()
    path.write_bytes(canonical({**data, "digest": digest}))


def canonical(data: object) -> bytes:
    """As docs/checkpoints.md says that a manifest is written."""
    return json.dumps(data, sort_keys=True, indent=1).encode()
