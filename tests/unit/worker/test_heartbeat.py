"""The heartbeat of a worker that is busy, asked to stop, superseded or stuck: in processes of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from own_processes import wait_for

from moe_cluster.contract import request_end, request_stop

ROOT = Path(__file__).parents[3]
HEADER = f"""\
import os, sys, time
sys.path[:0] = {[str(ROOT), str(ROOT / "cluster")]!r}
from pathlib import Path
from moe_train.worker.process import Process
"""
STUCK_WITH_THE_LOCK = "import ctypes; ctypes.PyDLL(None).sleep(60)"  # a PyDLL keeps Python's lock

Worker = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def worker(tmp_path: Path):
    """Starts a process that runs a body inside a Process of attempt 1; it is killed in the end."""
    started: list[subprocess.Popen[str]] = []

    def start(body: str) -> "subprocess.Popen[str]":
        code = (
            f"{HEADER}with Process.of_worker(Path({str(tmp_path)!r}), os.environ) as process:\n    {body}\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "MOE_TRAIN_LAUNCHER_PID": str(os.getpid())},
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def heartbeat(tmp_path: Path) -> dict[str, object]:
    path = tmp_path / "attempts/1/rank-0/heartbeat.json"
    return json.loads(path.read_text()) if path.exists() else {}


def test_a_worker_whose_main_thread_sleeps_goes_on_beating(worker: Worker, tmp_path: Path) -> None:
    worker("process.beat(3); time.sleep(60)")
    wait_for(lambda: heartbeat(tmp_path).get("step") == 3)
    first = heartbeat(tmp_path)
    wait_for(lambda: heartbeat(tmp_path)["time"] != first["time"])
    later = heartbeat(tmp_path)
    assert later["step_time"] == first["step_time"]
    assert (later["waiting"], later["where"], later["patience_s"]) == (0.0, "outside of moe-train", None)


def test_the_first_step_is_told_at_once_and_not_with_the_next_beat(worker: Worker, tmp_path: Path) -> None:
    worker(
        "from moe_train.worker import heartbeat\n"
        "    heartbeat.SAMPLES_A_BEAT, heartbeat.BEAT_EVERY_S = 1_000_000, 100_000.0\n"  # the next beat: tomorrow
        "    process.beat(1); time.sleep(600)"
    )
    wait_for(lambda: heartbeat(tmp_path).get("step") == 1)
    assert heartbeat(tmp_path)["phase"] == "training"


def test_a_stop_file_of_the_attempt_is_a_request_with_a_reason(worker: Worker, tmp_path: Path) -> None:
    process = worker("while not process.stop_requested: time.sleep(0.01)\n    print('stops')")
    wait_for(lambda: bool(heartbeat(tmp_path)))
    (tmp_path / "attempts/2").mkdir()
    request_stop(tmp_path, 2, "of another attempt")
    request_stop(tmp_path, 1, "a node comes back")
    assert process.communicate(timeout=30)[0] == "stops\n"
    assert heartbeat(tmp_path)["stop"] == "a node comes back"
    assert "asked to stop: a node comes back" in (tmp_path / "attempts/1/rank-0/log.txt").read_text()


def test_a_time_limit_is_kept_as_the_reason(worker: Worker, tmp_path: Path) -> None:
    process = worker("import signal; os.kill(os.getpid(), signal.SIGUSR1); print(process.stop_requested)")
    assert process.communicate(timeout=30)[0] == "True\n"
    assert heartbeat(tmp_path)["stop"] == "SIGUSR1: the time limit is near"


def test_a_worker_of_an_older_attempt_ends_by_itself_even_if_it_waits(worker: Worker, tmp_path: Path) -> None:
    process = worker("process.beat(9); time.sleep(600)")
    wait_for(lambda: heartbeat(tmp_path).get("step") == 9)
    (tmp_path / "attempts/2").mkdir()
    assert process.wait(timeout=30) == 1
    error = json.loads((tmp_path / "attempts/1/rank-0/error.json").read_text())
    assert (error["type"], error["explained"], error["step"]) == ("TrainingError", True, 9)
    assert "attempt 1 is superseded by attempt 2, so this worker ends" in error["message"]
    assert "superseded" in (tmp_path / "attempts/1/rank-0/log.txt").read_text()


def test_a_worker_of_an_attempt_that_the_launcher_ends_ends_at_once(worker: Worker, tmp_path: Path) -> None:
    process = worker("process.beat(9); time.sleep(600)")
    wait_for(lambda: heartbeat(tmp_path).get("step") == 9)
    request_end(tmp_path, 1, "the run hangs")
    assert process.wait(timeout=30) == 1
    error = json.loads((tmp_path / "attempts/1/rank-0/error.json").read_text())
    assert error["message"] == "the launcher ends attempt 1: the run hangs"


@pytest.mark.parametrize("body", ["time.sleep(60)", STUCK_WITH_THE_LOCK])
def test_the_stacks_of_a_worker_that_is_stuck_are_written_in_time(
    worker: Worker, tmp_path: Path, body: str
) -> None:
    stacks = tmp_path / "attempts/1/rank-0/stacks.txt"
    is_armed = f"Path({str(stacks)!r}).exists()"
    worker(
        "process.progress.expect(3.0, 3.0); process.beat(1)\n"
        f"    while not {is_armed}: time.sleep(0.05)\n"
        f"    time.sleep(0.1); {body}"
    )
    wait_for(lambda: stacks.exists() and "most recent call first" in stacks.read_text(), timeout_s=20)
    assert 'File "<string>"' in stacks.read_text()


def test_a_worker_that_was_never_stuck_leaves_no_stacks(worker: Worker, tmp_path: Path) -> None:
    process = worker("process.progress.expect(60.0, 60.0); process.beat(1); time.sleep(1.5); print('done')")
    assert process.communicate(timeout=30)[0] == "done\n"
    assert not (tmp_path / "attempts/1/rank-0/stacks.txt").exists()
