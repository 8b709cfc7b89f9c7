"""Cache entries: whole or absent, built once, rebuilt when damaged."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from moe_train.data.cache import DamagedEntryError, cache_dir, obtain, verified
from moe_train.errors import DataError

BUILDER = """
import sys, time
from pathlib import Path
from moe_train.data.cache import obtain

def fill(folder):
    (folder / "tokens").write_text("half")
    print("filling", flush=True)
    time.sleep(60)

obtain(Path(sys.argv[1]), fill, print)
"""


def fill(folder: Path) -> dict[str, int]:
    """An entry of one file."""
    (folder / "tokens").write_text("whole")
    return {"count": 5}


def never(folder: Path) -> dict[str, int]:
    """For entries that must not be built."""
    raise AssertionError("the entry was there")


def contend(entry: Path, gate, results) -> None:
    """Ask for the entry together with others; say whether it was built here, and what was said."""
    built, said = [], []

    def fill_slowly(folder: Path) -> dict[str, int]:
        built.append(True)
        gate.wait(timeout=10)
        return fill(folder)

    def say(sentence: str) -> None:
        said.append(sentence)
        gate.wait(timeout=10)

    facts = obtain(entry, fill_slowly, say)
    results.put((len(built), len(said), dict(facts)))


def test_the_cache_is_where_it_is_told_to_be_or_in_the_home_folder(tmp_path):
    assert cache_dir(str(tmp_path)) == tmp_path
    assert cache_dir(None) == cache_dir("") == Path.home() / ".cache" / "moe-train"


def test_an_entry_is_built_once_and_then_read_without_writing(tmp_path):
    entry = tmp_path / "deep" / "entry"
    said: list[str] = []
    assert obtain(entry, fill, said.append) == {"count": 5}
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert obtain(entry, never, said.append) == {"count": 5}
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert (entry / "tokens").read_text() == "whole"
    assert said == []


def truncate(entry: Path) -> None:
    (entry / "tokens").write_text("who")


def flip(entry: Path) -> None:
    (entry / "tokens").write_text("whale")


def remove(entry: Path) -> None:
    (entry / "tokens").unlink()


def tear_meta(entry: Path) -> None:
    (entry / "meta.json").write_text((entry / "meta.json").read_text()[:20])


def empty_meta(entry: Path) -> None:
    (entry / "meta.json").write_text("[]")


@pytest.mark.parametrize("damage", [truncate, flip, remove, tear_meta, empty_meta])
def test_a_damaged_entry_is_found_and_built_again_and_that_is_said_once(tmp_path, damage):
    entry = tmp_path / "entry"
    obtain(entry, fill, print)
    damage(entry)
    with pytest.raises(DamagedEntryError):
        verified(entry)
    said: list[str] = []
    assert obtain(entry, fill, said.append) == {"count": 5}
    assert len(said) == 1
    assert "damaged" in said[0]
    assert verified(entry) == {"count": 5}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["entry", "entry.lock"]


def test_an_entry_without_meta_is_not_an_entry(tmp_path):
    entry = tmp_path / "entry"
    entry.mkdir()
    (entry / "tokens").write_text("half")
    assert obtain(entry, fill, print) == {"count": 5}
    assert json.loads((entry / "meta.json").read_text())["files"]["tokens"]["bytes"] == 5


def test_a_builder_that_fails_leaves_nothing(tmp_path):
    def fail(folder: Path) -> dict[str, int]:
        fill(folder)
        raise DataError("no text")

    with pytest.raises(DataError, match="no text"):
        obtain(tmp_path / "entry", fail, print)
    assert [path.name for path in tmp_path.iterdir()] == ["entry.lock"]


def test_of_two_processes_one_builds_and_the_other_says_that_it_waits(tmp_path):
    context = multiprocessing.get_context("spawn")
    gate, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=contend, args=(tmp_path / "entry", gate, results)) for _ in range(2)]
    for process in processes:
        process.start()
    outcomes = sorted(results.get(timeout=20) for _ in processes)
    for process in processes:
        process.join()
    assert outcomes == [(0, 1, {"count": 5}), (1, 0, {"count": 5})]


def test_a_killed_builder_is_followed_by_the_next_without_delay_or_leftovers(tmp_path):
    entry = tmp_path / "entry"
    with subprocess.Popen([sys.executable, "-c", BUILDER, str(entry)], stdout=subprocess.PIPE) as builder:
        assert builder.stdout.readline() == b"filling\n"
        builder.send_signal(signal.SIGKILL)
    assert not entry.exists()
    assert (tmp_path / "entry.building" / "tokens").read_text() == "half"
    said: list[str] = []
    assert obtain(entry, fill, said.append) == {"count": 5}
    assert said == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["entry", "entry.lock"]


def test_a_cache_that_cannot_be_written_is_named_with_the_way_out(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"MOE_TRAIN_CACHE: .* \(Not a directory\); set MOE_TRAIN_CACHE to"):
        obtain(tmp_path / "file" / "entry", fill, print)


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path):
    def fill_disk(folder: Path) -> dict[str, int]:
        fill(folder)
        raise OSError(28, os.strerror(28))

    with pytest.raises(DataError, match=r"No space left on device.*writable folder with free space"):
        obtain(tmp_path / "entry", fill_disk, print)
    assert [path.name for path in tmp_path.iterdir()] == ["entry.lock"]
