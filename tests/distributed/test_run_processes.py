"""`moe-train run` on real processes, a stand-in for the trainer: who is stopped, named, restarted, reaped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from own_processes import OwnProcesses, wait_for

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


class Launcher:
    """One `moe-train run` in a folder of its own, and all the processes it starts."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run_dir = folder, folder / "run"
        self.processes = OwnProcesses()
        self.before: tuple[Path, ...] = ()
        """Folders that Python searches before ours."""
        (folder / "recipe.yaml").write_text("name: standin\nmodel: {d_model: 16}\ndata: {global_batch: 8}\n")

    def start(self, *arguments: str, fault: str = "") -> "subprocess.Popen[str]":
        path = os.pathsep.join(map(str, (*self.before, ROOT, ROOT / "cluster", HERE)))
        return subprocess.Popen(
            [
                sys.executable,
                str(HERE / "launch_standin.py"),
                "run",
                "recipe.yaml",
                "--run-dir",
                "run",
                *arguments,
            ],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": path, "STANDIN": fault, **self.processes.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, fault: str = "") -> "subprocess.CompletedProcess[str]":
        process = self.start(*arguments, fault=fault)
        output, errors = process.communicate(timeout=180)
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    @property
    def attempts(self) -> int:
        return len(list((self.run_dir / "attempts").iterdir()))

    @property
    def has_saved(self) -> bool:
        return (self.run_dir / "saved").exists()


@pytest.fixture
def launcher(tmp_path: Path) -> Launcher:
    return Launcher(tmp_path)


def test_a_killed_worker_is_named_and_the_run_goes_on_in_a_second_attempt(launcher: Launcher) -> None:
    done = launcher.run("--workers", "2", "--max-restarts", "1", "steps=6", fault="kill:1:4:1")
    assert done.returncode == 0, done.stderr
    assert "rank 1" in done.stderr
    assert "killed by SIGKILL" in done.stderr
    assert "restart 1 of 1" in done.stderr
    assert launcher.attempts == 2
    steps = [line for line in done.stdout.splitlines() if line.startswith("worker says")]
    assert steps == [f"worker says step {step}" for step in range(1, 7)]
    assert launcher.processes.living() == []

    again = launcher.run("--workers", "2", "steps=6")
    assert again.returncode == 0
    assert "is finished: it has trained all steps=6" in again.stderr
    assert launcher.attempts == 2


def test_the_error_of_one_rank_is_the_first_cause_and_no_traceback_is_shown(launcher: Launcher) -> None:
    done = launcher.run("--workers", "2", "steps=50", fault="raise:1:3:1")
    assert done.returncode == 1
    message = [line for line in done.stderr.splitlines() if "error:" in line]
    assert len(message) == 1
    assert message[0].startswith("moe-train: error: rank 1 on ")
    assert message[0].endswith("failed after step 2: ValueError: the expert is not at home")
    assert "run/attempts/1/rank-1/log.txt" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert "Gloo" not in done.stderr + done.stdout
    assert "Traceback" in (launcher.run_dir / "attempts/1/rank-1/log.txt").read_text()
    assert launcher.processes.living() == []


def test_a_mistake_of_the_user_is_not_tried_again(launcher: Launcher) -> None:
    done = launcher.run("--max-restarts", "3", "steps=5", fault="usage:0:1:1")
    assert done.returncode == 2
    assert "data.corpus.path=nowhere: holds no text; choose another folder" in done.stderr
    assert launcher.attempts == 1


def test_sigterm_to_the_launcher_saves_on_all_ranks_and_the_same_command_goes_on(launcher: Launcher) -> None:
    process = launcher.start("--workers", "2", "steps=100000")
    wait_for(lambda: launcher.has_saved)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "resume with: moe-train run recipe.yaml --run-dir run --workers 2" in errors.replace(
        "steps=100000 ", ""
    )
    assert launcher.processes.living() == []
    step = int((launcher.run_dir / "saved").read_text())
    resumed = launcher.run("--workers", "2", f"steps={step + 2}")
    assert resumed.returncode == 0
    assert f"worker says step {step + 1}\nworker says step {step + 2}\n" in resumed.stdout


def test_a_signal_while_the_workers_start_is_remembered(launcher: Launcher) -> None:
    process = launcher.start("--workers", "1", "--max-restarts", "1", "steps=100000")
    wait_for((launcher.run_dir / "attempts/1/launcher.log").exists)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert launcher.attempts == 1


def test_nothing_outlives_a_launcher_that_is_killed(launcher: Launcher) -> None:
    process = launcher.start("--workers", "2", "steps=100000")
    wait_for(lambda: launcher.has_saved)
    assert len(launcher.processes.living()) >= 4
    process.kill()
    process.communicate(timeout=60)
    wait_for(lambda: launcher.processes.living() == [])


def test_a_second_run_is_kept_out_of_the_folder_of_the_first(launcher: Launcher) -> None:
    process = launcher.start("--max-restarts", "1", "steps=100000")
    wait_for((launcher.run_dir / "attempts/1/launcher.log").exists)
    second = launcher.run("steps=100000")
    assert second.returncode == 1
    assert "another moe-train is running in it" in second.stderr
    process.kill()
    process.communicate(timeout=60)


def test_a_second_interrupt_ends_everything_at_once(launcher: Launcher) -> None:
    process = launcher.start("--max-restarts", "1", "steps=100000")
    wait_for((launcher.run_dir / "attempts/1/rank-0/heartbeat.json").exists)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert launcher.processes.living() == []


@pytest.mark.faults
@pytest.mark.parametrize("who", ["worker", "elastic"])
@pytest.mark.parametrize("delay_s", [0.2, 1.0, 2.5, 4.0])
def test_sigkill_of_any_process_at_any_moment_ends_all_and_is_reported(
    launcher: Launcher, who: str, delay_s: float
) -> None:
    process = launcher.start("--workers", "2", "steps=100000")
    wait_for((launcher.run_dir / "attempts/1/launcher.log").exists)
    time.sleep(delay_s)
    others = sorted(set(launcher.processes.living()) - {process.pid})
    os.kill(others[0] if who == "elastic" else others[-1], signal.SIGKILL)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 1
    assert errors.count("moe-train: error:") == 1
    assert "Traceback" not in errors
    assert launcher.processes.living() == []


# torch elastic as it is where it waits for a host that does not answer: nothing is said, and no worker begins.
SILENT = """\
import sys, time
if "torch.distributed.run" in sys.orig_argv:
    time.sleep(600)
"""


@pytest.fixture
def silent(launcher: Launcher) -> Launcher:
    (launcher.folder / "silent").mkdir()
    (launcher.folder / "silent/sitecustomize.py").write_text(SILENT)
    launcher.before = (launcher.folder / "silent",)
    return launcher


def test_workers_that_never_begin_are_waited_for_no_longer_than_the_timeout(silent: Launcher) -> None:
    ended = silent.run("--workers", "2", "job.timeout_s=10", "job.hang_s=10")
    assert ended.returncode == 1
    assert "no worker has started within 10 s" in ended.stderr
    assert silent.processes.living() == []


def test_a_stop_before_any_worker_has_begun_ends_at_once(silent: Launcher) -> None:
    process = silent.start("--workers", "2")
    wait_for((silent.run_dir / "attempts/1/launcher.log").exists)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 75, errors
    assert silent.processes.living() == []
