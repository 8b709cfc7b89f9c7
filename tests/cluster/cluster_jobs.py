"""Runs of a tiny recipe on a cluster of any kind, through `moe-train` commands alone, and what they leave.

slurm_jobs.py and ray_jobs.py add what only their schedulers know.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from full_disks import SharedDisk
from own_processes import wait_for
from small_run import RECIPE, lay_traps, write_corpus

ROOT = Path(__file__).parents[2]
STEPS = 120
PATIENCE_S = 300.0
ENDLESS = ("steps=100000", "checkpoint.every=100")
TWO_NODES = ("--nodes", "2", "parallel.expert=2")
SHARED_WORK = {
    "parallel.tensor=2": ("parallel.tensor=2",),
    "engine.kind=deepspeed": ("engine.kind=deepspeed", "engine.stage=2"),
}
"""Overrides with which the workers of TWO_NODES share more than experts, or share otherwise."""
CALM = ("optim.lr=1e-4",)
"""A rate at which rounding stays rounding for STEPS steps: at ten times as much it may send a token elsewhere."""
COMPUTED = ("loss", "losses", "grad_norm", "lr", "moe", "tokens_seen", "validation_loss")


class Cluster(Protocol):
    """What is asked of a cluster of any kind."""

    @property
    def environment(self) -> dict[str, str]:
        """Of commands that reach it."""

    def processes(self, host: str, /) -> Iterable[int]:
        """Ids, as this machine sees them, of all processes on the node of that name."""


class Terminal(ABC):
    """A working directory that all nodes see, with a recipe in it, and commands typed there."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        write_corpus(folder / "corpus")
        lay_traps(folder)
        recipe = RECIPE.format(corpus="corpus").replace("steps: 6", f"steps: {STEPS}")
        (folder / "small.yaml").write_text(
            recipe.replace("{every: 2}\njob", "{every: 10, keep_last: 3}\njob")
        )

    @property
    @abstractmethod
    def where(self) -> tuple[str, ...]:
        """Options that name the cluster."""

    def __call__(self, *words: str, code: int = 0, first_on_path: str = "", **extra: str) -> str:
        """Output of a command that ends with `code`: what it printed, or else its one error."""
        done = subprocess.run(
            [sys.executable, "-P", "-m", "moe_train.cli", *words],
            cwd=self.folder,
            env={**os.environ, **self._surroundings(first_on_path), **extra},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr if code else done.stdout

    def _surroundings(self, first_on_path: str) -> dict[str, str]:
        parts = (*filter(None, [first_on_path]), ROOT, ROOT / "cluster", ROOT / "kernels")
        return {
            "PYTHONPATH": os.pathsep.join(map(str, parts)),
            "MOE_TRAIN_CACHE": str(self.folder / "cache"),
            "XDG_CONFIG_HOME": str(self.folder),
            "OMP_NUM_THREADS": "1",
            **self.cluster.environment,
        }

    def _submit(self, name: str, *words: str, runs: Path | None = None, **extra: str) -> tuple[Path, str]:
        """Hand the recipe to the cluster under a name of its own; returns the run's folder and the job's id.

        `runs`: what the run's folder lies in, if not the terminal's own.
        """
        folder = (runs or self.folder / "runs") / name
        named = (f"name={name}", "--run-dir", str(folder))
        return folder, _job_id(self("submit", "small.yaml", *self.where, *named, *words, **extra))


class Run:
    """One run folder and the job that works on it."""

    def __init__(self, terminal: Terminal, folder: Path, job_id: str = "") -> None:
        self.terminal, self.folder, self.job_id = terminal, folder, job_id

    @property
    def output(self) -> str:
        """What the job has said."""
        return self.terminal("logs", str(self.folder))

    @property
    def step(self) -> int:
        """The last step on record."""
        path = self.folder / "metrics.jsonl"
        rows = path.read_text().splitlines() if path.exists() else []
        return int(json.loads(rows[-1])["step"]) if rows else 0

    @property
    def attempts(self) -> int:
        return len(list(self.folder.glob("attempts/*")))

    def workers_of(self, attempt: int) -> int:
        """How many workers an attempt has had."""
        return len(list(self.folder.glob(f"attempts/{attempt}/rank-*/heartbeat.json")))

    def outcome(self, attempt: int) -> dict[str, object]:
        """How the launcher saw an attempt end."""
        return dict(json.loads((self.folder / f"attempts/{attempt}/outcome.json").read_text()))

    def resume(self, **extra: str) -> None:
        """Hand the run over again."""
        self.job_id = _job_id(self.terminal("resume", str(self.folder), **extra))

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.terminal("status", str(self.folder), "--json")))

    def wait_for_step(self, step: int) -> None:
        wait_for(lambda: self.step >= step, every_s=0.02, timeout_s=PATIENCE_S)

    def wait_for_attempt(self, number: int) -> float:
        """Wait until an attempt computes, not only starts; returns the seconds that took."""
        began = time.monotonic()

        def computes() -> bool:
            beats = [
                json.loads(path.read_text())
                for path in self.folder.glob(f"attempts/{number}/rank-*/heartbeat.json")
            ]
            return any(beat["step"] is not None for beat in beats)

        wait_for(computes, every_s=0.05, timeout_s=PATIENCE_S)
        return time.monotonic() - began

    def worker(self, rank: int, attempt: int = 1) -> tuple[str, int]:
        """The node of a rank, and the worker's process id as this machine knows it."""
        beat = json.loads((self.folder / f"attempts/{attempt}/rank-{rank}/heartbeat.json").read_text())
        for pid in self.terminal.cluster.processes(beat["host"]):
            status = Path(f"/proc/{pid}/status").read_text()
            inner = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[-1]
            if inner == str(beat["pid"]):
                return beat["host"], pid
        raise AssertionError(f"rank {rank} has no process on {beat['host']}")

    def damage_newest_checkpoint(self) -> Path:
        """Flip a bit in each file of its tensors, and have rank 1 killed before there is a newer one."""
        _, pid = self.worker(rank=1)
        os.kill(pid, signal.SIGSTOP)
        newest = max(self.folder.glob("checkpoints/step_*"), key=lambda path: path.name)
        for file in newest.glob("*.safetensors"):
            content = bytearray(file.read_bytes())
            content[-5] ^= 1
            file.write_bytes(content)
        os.kill(pid, signal.SIGKILL)
        return newest

    def repeated_steps(self) -> list[int]:
        """Steps that have more than one row."""
        rows = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        steps = [row["step"] for row in rows if "loss" in row]
        return [step for step in steps if steps.count(step) > 1]

    def numbers(self) -> dict[tuple[int, str], Any]:
        """What the run computed at each step: of a step that was made twice, what was made last."""
        found: dict[tuple[int, str], Any] = {}
        for line in (self.folder / "metrics.jsonl").read_text().splitlines():
            row = json.loads(line)
            found |= {(row["step"], key): row[key] for key in COMPUTED if key in row}
        return found

    def assert_goes_on_as(self, undisturbed: "Run") -> None:
        """No row of this longer run is missing, and as far as the undisturbed one went, the numbers are the same."""
        losses = {step: loss for (step, key), loss in self.numbers().items() if key == "loss"}
        assert sorted(losses) == list(range(2, max(losses) + 1, 2))
        expected = undisturbed.numbers()
        assert all(losses[step] == expected[step, "loss"] for step in losses if step < STEPS)

    def assert_resumed(self, attempt: int) -> None:
        """The attempt began at a checkpoint of the one before."""
        begun = re.search(rf"attempt {attempt}, from step (\d+)", self.output)
        assert begun, self.output
        assert int(begun[1]) > 0

    def assert_like_one_worker(self, *overrides: str) -> None:
        """Every row from the first to the last is there, with the loss of a run of one worker, up to rounding."""
        alone = Run(self.terminal, self.folder.with_name(f"{self.folder.name}-alone"))
        words = ("run", "small.yaml", "--run-dir", str(alone.folder), *overrides, f"steps={self.step}")
        self.terminal(*words)
        losses, others = (
            {step: value for (step, key), value in run.numbers().items() if key == "loss" and step % 2 == 0}
            for run in (self, alone)
        )
        assert losses == pytest.approx(others, rel=1e-5)


def assert_sweeps(terminal: Terminal, undisturbed: Run) -> None:
    """Two seeds are trained to their end, the recipe's own as in the undisturbed run, and come in a table."""
    words = ("sweep", "small.yaml", "seed=0,1", *terminal.where, *TWO_NODES)
    submitted, heading, *rows = terminal(*words, "--wait").splitlines()
    assert "submitted 2 of 2 runs" in submitted
    assert heading.split()[:5] == ["run", "state", "step", "loss", "validation"]
    names, states, steps, _, validation, *_ = zip(*map(str.split, rows), strict=True)
    assert sorted(names) == ["seed=0", "seed=1"]
    assert set(states) == {"finished"}
    assert {step.partition("/")[0] for step in steps} == {str(STEPS)}
    assert list(map(float, validation)) == sorted(map(float, validation))
    assert Run(terminal, terminal.folder / "runs/small-sweep/seed=0").numbers() == undisturbed.numbers()
    assert "submitted 0 of 2 runs" in terminal(*words)


FULL_DISK = (
    "the disk of the run's folder is full",
    "a clear end; what was complete stays",
    "as promised; `resume` refuses until there is room, and then continues from the last checkpoint",
)
"""A row of the table of scenarios."""


def assert_outlives_full_disk(
    run: Run, disk: SharedDisk, undisturbed: Run, fails: Callable[[], object], finishes: Callable[[], object]
) -> None:
    """A run on a disk that is filled ends with the reason, and once there is room goes on from what was complete.

    `fails` and `finishes` wait for these ends of its job.
    """
    run.wait_for_step(22)
    disk.fill()
    fails()
    status = run.status()
    assert status["state"] == "failed"
    assert f"the disk of {run.folder} is full" in status["said"]
    assert "No space left on device" in run.output
    assert status["saved_step"] >= 20
    refusal = run.terminal("resume", str(run.folder), code=1)
    assert "No space left on device" in refusal
    disk.free()
    run.resume()
    finishes()
    assert f"attempt {run.attempts}, from step {status['saved_step']}" in run.output
    assert run.numbers() == undisturbed.numbers()


@contextlib.contextmanager
def slowed(pid: int) -> Iterator[None]:
    """A process that runs for a tenth of the time alone, as long as the block lasts."""
    ended = threading.Event()

    def hinder() -> None:
        while not ended.wait(0.05):
            os.kill(pid, signal.SIGSTOP)
            ended.wait(0.45)
            os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=hinder)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _job_id(said: str) -> str:
    """The id in "submitted KIND:ID; FOLDER"."""
    return said.partition("submitted ")[2].partition(";")[0].partition(":")[2]
