"""Being asked to stop before the first step: there is nothing to save, so the end comes at once, whatever goes on."""

import json
import os
import random
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from small_run import environment
from worker_process import PATHS
from worker_process import in_a_process as in_a_bare_process

from moe_cluster.contract import request_stop

BEFORE = (
    "import fcntl, signal, subprocess, threading, time\n"
    "def soon(number=signal.SIGTERM): threading.Timer(0.3, os.kill, (os.getpid(), number)).start()"
)
in_a_process = partial(in_a_bare_process, before=BEFORE)


def error_file(run_dir: Path) -> Path:
    return run_dir / "attempts/1/rank-0/error.json"


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT", "SIGUSR1"])
@pytest.mark.parametrize(
    "waits",
    [
        "time.sleep(1000)",
        "subprocess.run(['sleep', '1000'])",
        "fcntl.flock(os.open('lock', os.O_RDONLY), fcntl.LOCK_EX)",
        "threading.Event().wait()",
        "os.read(os.pipe()[0], 1)",
    ],
)
def test_a_wait_before_the_first_step_ends_with_the_signal(tmp_path: Path, number: str, waits: str) -> None:
    lock = tmp_path / "lock"
    lock.touch()
    other = "other = os.open('lock', os.O_RDONLY); fcntl.flock(other, fcntl.LOCK_EX)"
    body = (
        f"os.chdir({str(tmp_path)!r}); {other}\nsoon(signal.{number})\nwith process.ending_at_stop(): {waits}"
    )
    done = in_a_process(body, tmp_path / "run")
    assert done.returncode == 75, done.stderr
    assert "stopping: there is nothing to save before the first step" in done.stderr
    assert not error_file(tmp_path / "run").exists()


def test_a_signal_that_came_before_ends_the_start(tmp_path: Path) -> None:
    body = "os.kill(os.getpid(), signal.SIGTERM)\nwith process.ending_at_stop(): print('begun')"
    done = in_a_process(body, tmp_path)
    assert (done.returncode, done.stdout) == (75, "")


def test_a_stop_that_is_read_from_the_folder_ends_the_start_of_a_worker(tmp_path: Path) -> None:
    (tmp_path / "attempts/1").mkdir(parents=True)
    request_stop(tmp_path, 1, "its node is needed")
    done = in_a_process("with process.ending_at_stop(): time.sleep(1000)", tmp_path)
    assert done.returncode == 75, done.stderr


def test_a_repeated_signal_does_not_disturb_what_the_first_one_tidies_up(tmp_path: Path) -> None:
    body = (
        "soon()\ntry:\n    with process.ending_at_stop(): time.sleep(1000)\n"
        "finally:\n    os.kill(os.getpid(), signal.SIGTERM); print('tidied up', flush=True)"
    )
    done = in_a_process(body, tmp_path)
    assert (done.returncode, done.stdout) == (75, "tidied up\n")


def test_after_the_start_a_signal_is_a_request_again(tmp_path: Path) -> None:
    body = "with process.ending_at_stop(): pass\nos.kill(os.getpid(), signal.SIGTERM); print(process.stop_requested)"
    done = in_a_process(body, tmp_path)
    assert (done.returncode, done.stdout) == (0, "True\n")


def test_losing_the_others_after_a_stop_before_the_first_step_is_no_failure(tmp_path: Path) -> None:
    lost = "os.kill(os.getpid(), signal.SIGTERM); raise RuntimeError('Connection closed by peer')"
    assert in_a_process(lost, tmp_path / "early").returncode == 75
    assert not error_file(tmp_path / "early").exists()
    assert "Connection closed by peer" in (tmp_path / "early/attempts/1/rank-0/log.txt").read_text()
    assert in_a_process(f"process.beat(1); {lost}", tmp_path / "late").returncode == 1
    assert json.loads(error_file(tmp_path / "late").read_text())["message"] == "Connection closed by peer"


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe whose text is two words of two million letters: learning its tokens would take half an hour."""
    folder = tmp_path_factory.mktemp("words")
    (folder / "corpus").mkdir()
    draw = random.Random(0)
    for number in range(2):
        (folder / f"corpus/{number}.txt").write_text("".join(draw.choices("abcd", k=2_000_000)))
    (folder / "long.yaml").write_text(
        "name: long\nmodel: {num_layers: 2, d_model: 16, num_heads: 2}\nmoe: {every: 2, num_experts: 4}\n"
        "data:\n  corpus: {path: corpus}\n  tokenizer: {vocab_size: 300}\n  sequence_length: 16\n  global_batch: 8\n"
    )
    return folder


@pytest.mark.parametrize(
    ("command", "number", "code"),
    [
        ("run long.yaml --run-dir {run}", signal.SIGTERM, 75),
        ("run long.yaml --run-dir {run}", signal.SIGINT, 75),
        ("run long.yaml --run-dir {run} --workers 2", signal.SIGTERM, 75),
        ("data build long.yaml", signal.SIGINT, 1),
        ("data build long.yaml", signal.SIGTERM, -signal.SIGTERM),
    ],
)
def test_learning_a_very_long_word_is_said_and_ends_with_a_signal(
    words: Path, tmp_path: Path, command: str, number: signal.Signals, code: int
) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "moe_train.cli", *command.format(run=tmp_path / "run").split()],
        cwd=words,
        env={**os.environ, **environment(words), "PYTHONPATH": os.pathsep.join(PATHS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            said = _end_while_learning(process, number)
        finally:
            process.kill()
    assert process.returncode == code, said
    assert "Traceback" not in said
    if "run" in command.split():
        assert "stopped before anything was saved; resume with: moe-train run long.yaml" in said


def _end_while_learning(process: "subprocess.Popen[str]", number: signal.Signals) -> str:
    """Send the signal once the long word has been reported, and return what is printed after that."""
    assert process.stdout is not None
    before = ""
    while "square of a word's length" not in before:
        line = process.stdout.readline()
        assert line, before
        before += line
    assert "has a word of 2,000,000 characters" in before
    process.send_signal(number)
    return process.communicate(timeout=120)[0]
