"""What a worker leaves behind, and how it takes signals, in a process of its own."""

import errno
import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from worker_process import in_a_process as in_a_bare_process

from moe_train.errors import DataError
from moe_train.worker.process import Process

ROOT = Path(__file__).parents[3]


in_a_process = partial(in_a_bare_process, before="import logging, signal, warnings")


def test_an_error_is_recorded_and_becomes_an_exit_code(tmp_path: Path) -> None:
    done = in_a_process("process.beat(7); raise ValueError('no')", tmp_path, RANK="3", MOE_TRAIN_ATTEMPT="2")
    assert done.returncode == 1
    assert done.stderr == ""
    folder = tmp_path / "attempts/2/rank-3"
    error = json.loads((folder / "error.json").read_text())
    assert (error["rank"], error["step"], error["type"], error["message"]) == (3, 7, "ValueError", "no")
    assert error["traceback"].startswith("Traceback (most recent call last)")
    assert "ValueError: no" in (folder / "log.txt").read_text()
    heartbeat = json.loads((folder / "heartbeat.json").read_text())
    assert (heartbeat["step"], heartbeat["phase"], heartbeat["stop"]) == (7, "ended", None)


def test_a_named_error_keeps_its_exit_code(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as end, Process(tmp_path, attempt=1, rank=0):
        raise DataError("data.corpus.path=x: is empty; choose another folder")
    assert end.value.code == 2
    error = json.loads((tmp_path / "attempts/1/rank-0/error.json").read_text())
    assert error["message"] == "data.corpus.path=x: is empty; choose another folder"


@pytest.mark.parametrize("names", [["run/tokenizer.json"], ["cache/tokenizer.json", "run/tokenizer.json"]])
def test_a_full_disk_under_the_run_folder_is_explained(tmp_path: Path, names: list[str]) -> None:
    paths = [str(tmp_path / name) for name in names]
    with pytest.raises(SystemExit) as end, Process(tmp_path / "run", attempt=1, rank=0):
        raise OSError(errno.ENOSPC, "No space left on device", paths[0], None, *paths[1:])
    assert end.value.code == 1
    error = json.loads((tmp_path / "run/attempts/1/rank-0/error.json").read_text())
    assert (error["type"], error["explained"]) == ("RunError", True)
    assert error["message"] == (
        f"run_dir={tmp_path}/run: cannot be written (No space left on device: {tmp_path}/run/tokenizer.json); "
        "correct its permissions, free space, or choose another --run-dir"
    )
    assert "OSError: [Errno 28]" in error["traceback"]


def test_a_missing_file_elsewhere_is_not_taken_for_a_fault_of_the_run_folder(tmp_path: Path) -> None:
    with pytest.raises(SystemExit), Process(tmp_path / "run", attempt=1, rank=0):
        (tmp_path / "elsewhere").read_text()
    error = json.loads((tmp_path / "run/attempts/1/rank-0/error.json").read_text())
    assert (error["type"], error["explained"]) == ("FileNotFoundError", False)


@pytest.mark.parametrize("code", [0, 75])
def test_a_good_end_leaves_no_error(tmp_path: Path, code: int) -> None:
    with pytest.raises(SystemExit) as end, Process(tmp_path, attempt=1, rank=0):
        raise SystemExit(code)
    assert end.value.code == code
    assert not (tmp_path / "attempts/1/rank-0/error.json").exists()


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_first_signal_is_a_request(tmp_path: Path, number: str) -> None:
    body = f"os.kill(os.getpid(), signal.{number}); print(process.stop_requested)"
    done = in_a_process(body, tmp_path)
    assert (done.returncode, done.stdout) == (0, "True\n")
    assert "stopping" in done.stderr


def test_a_repeated_sigterm_changes_nothing_but_a_second_interrupt_ends(tmp_path: Path) -> None:
    twice = "[os.kill(os.getpid(), signal.SIGTERM) for _ in range(3)]; print('lives'); sys.stdout.flush()"
    done = in_a_process(f"{twice}; os.kill(os.getpid(), signal.SIGINT); print('still')", tmp_path)
    assert done.stdout == "lives\n"
    assert done.returncode == -signal.SIGINT
    assert not (tmp_path / "attempts/1/rank-0/error.json").exists()


def test_a_launched_rank_0_speaks_to_the_terminal_and_native_code_to_the_log(tmp_path: Path) -> None:
    body = "logging.getLogger('moe_train.x').info('one sentence'); print('printed'); os.system('echo native')"
    done = in_a_process(body, tmp_path, MOE_TRAIN_LAUNCHER_PID=str(os.getpid()))
    assert done.stdout == "one sentence\nprinted\n"
    assert done.stderr == ""
    log = (tmp_path / "attempts/1/rank-0/log.txt").read_text()
    assert "INFO moe_train.x: one sentence" in log
    assert "native\n" in log


def test_a_launched_rank_1_is_silent(tmp_path: Path) -> None:
    body = "logging.getLogger('moe_train.x').warning('one sentence'); print('printed', flush=True)"
    done = in_a_process(body, tmp_path, RANK="1", MOE_TRAIN_LAUNCHER_PID=str(os.getpid()))
    assert done.stdout == done.stderr == ""
    log = (tmp_path / "attempts/1/rank-1/log.txt").read_text()
    assert "one sentence" in log
    assert "printed" in log


def test_a_worker_whose_launcher_is_gone_ends_before_it_writes(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    done = in_a_process("print('lives')", tmp_path, MOE_TRAIN_LAUNCHER_PID=str(gone.pid))
    assert (done.returncode, done.stdout) == (1, "")
    assert list(tmp_path.iterdir()) == []


def test_the_layout_is_written_as_given(tmp_path: Path) -> None:
    with Process(tmp_path, attempt=1, rank=0) as process:
        process.write_layout({"expert_rank": 1, "parameters": {"w": [2, 3]}})
    layout = json.loads((tmp_path / "attempts/1/rank-0/layout.json").read_text())
    assert layout == {"expert_rank": 1, "parameters": {"w": [2, 3]}}
