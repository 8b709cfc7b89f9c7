"""Folders of runs that are links: to larger disks, and to places that are no more."""

import json
import os
import shutil
from pathlib import Path

import pytest
from small_run import Command, tree

NOWHERE = "is a link to /nonexistent/place, which is not there"


@pytest.mark.parametrize(
    ("link", "words"),
    [
        ("link", ["run", "small.yaml", "--run-dir", "{link}"]),
        ("link", ["run", "small.yaml", "--run-dir", "{link}", "--resume", "never"]),
        ("link", ["run", "small.yaml", "--run-dir", "{link}/below"]),
        ("run/checkpoints", ["run", "small.yaml", "--run-dir", "{link}/..", "steps=8"]),
        ("link", ["submit", "small.yaml", "--run-dir", "{link}"]),
        ("link", ["sweep", "small.yaml", "seed=0,1", "--dir", "{link}"]),
        ("link", ["status", "{link}"]),
        ("link", ["monitor", "{link}"]),
        ("link", ["list", "{link}"]),
        ("link", ["run", "small.yaml", "--run-dir", "{link}", "data.corpus.path={link}"]),
        ("link", ["submit", "small.yaml", "--dry-run", "data.corpus.path={link}/deep"]),
    ],
)
def test_a_link_to_a_place_that_is_not_there_is_named(
    moe_train: Command, tmp_path: Path, link: str, words: list[str]
) -> None:
    path = tmp_path / link
    path.parent.mkdir(exist_ok=True)
    path.symlink_to("/nonexistent/place")
    before = tree(tmp_path)
    ended = moe_train(*(word.format(link=path) for word in words))
    assert ended.code != 0
    ended.refuses(f"{path} {NOWHERE}", code=ended.code)
    assert tree(tmp_path) == before


def test_a_cache_behind_a_link_to_nowhere_is_named(
    moe_train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to("/nonexistent/place")
    monkeypatch.setenv("MOE_TRAIN_CACHE", str(tmp_path / "link"))
    moe_train("data", "build", "small.yaml").refuses(f"{tmp_path / 'link'} {NOWHERE}")


@pytest.mark.parametrize("target", ["real", "{parent}/real"])
def test_starting_afresh_in_a_linked_folder_moves_what_it_leads_to(
    moe_train: Command, tmp_path: Path, target: str
) -> None:
    disk, link = tmp_path / "disk", tmp_path / "disk/link"
    (disk / "real").mkdir(parents=True)
    link.symlink_to(target.format(parent=disk))
    words = ("run", "small.yaml", "--run-dir", str(link), "steps=2", "checkpoint.every=0")
    assert moe_train(*words).code == 0
    before = (disk / "real/metrics.jsonl").read_bytes()
    for number in (1, 2):
        ended = moe_train(*words, "--resume", "never")
        assert ended.code == 0
        assert f"{link} held a run; it is now {disk}/real.old-{number}" in ended.errors
    assert os.readlink(link) == target.format(parent=disk)
    assert sorted(os.listdir(disk)) == ["link", "real", "real.old-1", "real.old-2"]
    assert not (disk / "real").is_symlink()
    assert (disk / "real.old-1/metrics.jsonl").read_bytes() == before
    assert (disk / "real/finished.json").exists()


@pytest.mark.parametrize("refusal", ["data.corpus.path=nothing", "data.tokenizer.vocab_size=5000"])
def test_what_was_moved_aside_for_a_run_that_is_refused_comes_back(
    moe_train: Command, run_dir: Path, refusal: str
) -> None:
    link = run_dir.with_name("link")
    link.symlink_to("run")
    before = tree(run_dir.parent)
    for path in (run_dir, link):
        moe_train("run", "small.yaml", "--run-dir", str(path), "--resume", "never", refusal).refuses(refusal)
        assert tree(run_dir.parent) == before


def test_a_checkpoint_that_is_a_link_gives_way_to_newer_ones(moe_train: Command, run_dir: Path) -> None:
    elsewhere = run_dir.with_name("large disk")
    (run_dir / "checkpoints/step_00000002").rename(elsewhere)
    (run_dir / "checkpoints/step_00000002").symlink_to(elsewhere)
    before = tree(elsewhere)
    words = ("--run-dir", str(run_dir), "steps=8", "checkpoint.keep_last=1")
    ended = moe_train("run", "small.yaml", *words)
    assert ended.code == 0
    assert all(line.endswith(" by this resume") for line in ended.errors.splitlines()), ended.errors
    kept = sorted(path.name for path in (run_dir / "checkpoints").glob("step*"))
    assert kept == ["step_00000008"]
    assert tree(elsewhere) == before


def test_a_run_behind_a_link_is_listed_once(moe_train: Command, run_dir: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "outside").symlink_to(run_dir)
    (runs / "dead").symlink_to("/nonexistent")
    shutil.copytree(run_dir, runs / "inside")
    (runs / "again").symlink_to("inside")
    listed = json.loads(moe_train("list", str(runs), "--json").output)
    assert sorted(Path(row["run_dir"]).name for row in listed) == ["inside", "outside"]
