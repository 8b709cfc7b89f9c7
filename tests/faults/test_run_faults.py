"""Real training that is killed or asked to stop: resumed, it ends with the same numbers, bitwise.

The fast set stops a run of one worker; the `faults` set kills any process of two workers at random moments.
"""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from own_processes import OwnProcesses, wait_for

ROOT = Path(__file__).parents[2]
RECIPE = f"""\
name: small
steps: 48
log_every: 2
validate_every: 12
model: {{num_layers: 2, d_model: 32, num_heads: 2}}
moe: {{num_experts: 4}}
data:
  corpus: {{path: {Path(asyncio.__file__).parent}}}
  tokenizer: {{vocab_size: 300}}
  sequence_length: 32
  global_batch: 8
  validation_sequences: 8
checkpoint: {{every: 4, keep_last: 2}}
"""


class Run:
    """One run folder, and the `moe-train` commands on it."""

    def __init__(self, folder: Path, name: str, *arguments: str) -> None:
        self.folder, self.run_dir, self.arguments = folder, folder / name, arguments
        self.processes = OwnProcesses()

    def command(self, *arguments: str) -> "subprocess.Popen[str]":
        path = os.pathsep.join(map(str, (ROOT, ROOT / "cluster")))
        extra = {"PYTHONPATH": path, "MOE_TRAIN_CACHE": str(self.folder / "cache")}
        return subprocess.Popen(
            [sys.executable, "-m", "moe_train.cli", *arguments],
            cwd=self.folder,
            env={**os.environ, **extra, **self.processes.environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def start(self) -> "subprocess.Popen[str]":
        return self.command("run", "small.yaml", "--run-dir", str(self.run_dir), *self.arguments)

    def finish(self) -> None:
        process = self.start()
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors

    def verify(self) -> None:
        process = self.command("ckpt", "verify", str(self.run_dir))
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors

    @property
    def num_rows(self) -> int:
        metrics = self.run_dir / "metrics.jsonl"
        return metrics.read_bytes().count(b"\n") if metrics.exists() else 0

    def numbers(self) -> dict[tuple[int, str], Any]:
        """What the run computed at each step: of a step that was made twice, what was made last."""
        found: dict[tuple[int, str], Any] = {}
        for line in (self.run_dir / "metrics.jsonl").read_text().splitlines():
            row = json.loads(line)
            for key in ("loss", "losses", "grad_norm", "lr", "moe", "tokens_seen", "validation_loss"):
                if key in row:
                    found[row["step"], key] = row[key]
        return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("faults")
    (path / "small.yaml").write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def uninterrupted(folder: Path) -> Run:
    run = Run(folder, "uninterrupted")
    run.finish()
    return run


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_was_stopped_ends_with_the_same_numbers(
    folder: Path, uninterrupted: Run, number: signal.Signals
) -> None:
    run = Run(folder, number.name)
    process = run.start()
    wait_for(lambda: run.num_rows > 10)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (75 if number == signal.SIGTERM else -number), errors
    run.verify()
    run.finish()
    assert sorted(os.listdir(run.run_dir / "attempts")) == ["1", "2"]
    assert run.numbers() == uninterrupted.numbers()


@pytest.mark.faults
def test_a_killed_worker_is_replaced_and_the_numbers_stay_the_same(folder: Path, uninterrupted: Run) -> None:
    run = Run(folder, "restarted", "--max-restarts", "1")
    process = run.start()
    wait_for(lambda: run.num_rows > 10)
    heartbeat = json.loads((run.run_dir / "attempts/1/rank-0/heartbeat.json").read_text())
    os.kill(heartbeat["pid"], signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "killed by SIGKILL" in errors
    assert run.numbers() == uninterrupted.numbers()


@pytest.mark.faults
@pytest.mark.parametrize("seed", [pytest.param(0, id="representative"), 1, 2, 3])
def test_sigkill_of_any_process_at_random_moments_loses_nothing_that_was_committed(
    folder: Path, seed: int
) -> None:
    layout = ("--workers", "2", "parallel.expert=2")
    reference = Run(folder, "reference", *layout)
    reference.finish()
    chance = random.Random(seed)
    run = Run(folder, f"killed-{seed}", *layout)
    for _ in range(6):
        process = run.start()
        rows = run.num_rows + chance.randrange(1, 12)
        wait_for(lambda rows=rows, process=process: run.num_rows >= rows or process.poll() is not None)
        time.sleep(chance.uniform(0, 0.2))
        living = run.processes.living()
        for pid in chance.sample(living, k=min(1, len(living))):
            os.kill(pid, signal.SIGKILL)
        process.communicate(timeout=120)
        wait_for(lambda: run.processes.living() == [])
        if any((run.run_dir / "checkpoints").glob("step_*")):
            run.verify()
    run.finish()
    assert run.numbers() == reference.numbers()
