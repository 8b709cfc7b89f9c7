"""Runs of a tiny recipe on the Slurm of slurm_cluster.py, through `moe-train` commands alone, and what they leave."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from own_processes import wait_for
from slurm_cluster import SlurmCluster
from small_run import RECIPE, write_corpus

ROOT = Path(__file__).parents[2]
STEPS = 120
PATIENCE_S = 300.0
TWO_NODES = ("--nodes", "2", "parallel.expert=2")
COMPUTED = ("loss", "losses", "grad_norm", "lr", "moe", "tokens_seen", "validation_loss")


class Terminal:
    """A working directory that all nodes see, with a recipe in it, and commands typed there."""

    def __init__(self, cluster: SlurmCluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        write_corpus(folder / "corpus")
        recipe = RECIPE.format(corpus="corpus").replace("steps: 6", f"steps: {STEPS}")
        (folder / "small.yaml").write_text(
            recipe.replace("{every: 2}\njob", "{every: 10, keep_last: 3}\njob")
        )

    def __call__(self, *words: str, code: int = 0, first_on_path: str = "", **extra: str) -> str:
        """Output of a command that ends with `code`: what it printed, or else its one error."""
        done = subprocess.run(
            [sys.executable, "-m", "moe_train.cli", *words],
            cwd=self.folder,
            env={**os.environ, **self._surroundings(first_on_path), **extra},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr if code else done.stdout

    def submit(self, name: str, *words: str, **extra: str) -> "SlurmRun":
        """Hand the recipe to Slurm under a name of its own."""
        folder = self.folder / "runs" / name
        said = self(
            "submit",
            "small.yaml",
            "--cluster",
            "slurm",
            f"name={name}",
            *words,
            "--run-dir",
            str(folder),
            **extra,
        )
        return SlurmRun(self, folder, said.partition("slurm:")[2].partition(";")[0])

    def _surroundings(self, first_on_path: str) -> dict[str, str]:
        parts = (*filter(None, [first_on_path]), ROOT, ROOT / "cluster", ROOT / "kernels")
        return {
            "PYTHONPATH": os.pathsep.join(map(str, parts)),
            "MOE_TRAIN_CACHE": str(self.folder / "cache"),
            "XDG_CONFIG_HOME": str(self.folder),
            "OMP_NUM_THREADS": "1",
            **self.cluster.environment,
        }


class SlurmRun:
    """One run folder and the job that works on it."""

    def __init__(self, terminal: Terminal, folder: Path, job_id: str) -> None:
        self.terminal, self.folder, self.job_id = terminal, folder, job_id

    @property
    def output(self) -> str:
        """What the job has said."""
        path = self.folder / f"jobs/{self.job_id}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def step(self) -> int:
        """The last step on record."""
        path = self.folder / "metrics.jsonl"
        rows = path.read_text().splitlines() if path.exists() else []
        return int(json.loads(rows[-1])["step"]) if rows else 0

    @property
    def attempts(self) -> int:
        return len(list(self.folder.glob("attempts/*")))

    def resume(self) -> None:
        """Hand the run to Slurm again."""
        self.job_id = _job_id(self.terminal("resume", str(self.folder)))

    def workers_of(self, attempt: int) -> int:
        """How many workers an attempt has had."""
        return len(list(self.folder.glob(f"attempts/{attempt}/rank-*/heartbeat.json")))

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.terminal("status", str(self.folder), "--json")))

    def job(self) -> str:
        """Slurm's record of the job."""
        return self.terminal.cluster.call("scontrol", "show", "job", self.job_id)

    def wait_for_step(self, step: int, timeout_s: float = PATIENCE_S) -> None:
        wait_for(lambda: self.step >= step, every_s=0.02, timeout_s=timeout_s)

    def wait_for_attempt(self, number: int, timeout_s: float = PATIENCE_S) -> float:
        """Wait until an attempt computes, not only starts; returns the seconds that took."""
        began = time.monotonic()

        def computes() -> bool:
            beats = [
                json.loads(path.read_text())
                for path in self.folder.glob(f"attempts/{number}/rank-*/heartbeat.json")
            ]
            return any(beat["step"] is not None for beat in beats)

        wait_for(computes, every_s=0.05, timeout_s=timeout_s)
        return time.monotonic() - began

    def wait_for_job(self, state: str, timeout_s: float = PATIENCE_S) -> str:
        """Wait until Slurm says so; returns its record."""
        ends = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")

        def is_there() -> bool:
            record = self.job()
            assert state not in ends or not any(
                f"JobState={end} " in record for end in ends if end != state
            ), f"{record}\n{self.output}"
            return f"JobState={state} " in record

        wait_for(is_there, every_s=0.2, timeout_s=timeout_s)
        return self.job()

    def worker(self, rank: int, attempt: int = 1) -> tuple[str, int]:
        """The node of a rank, and the worker's process id as this machine knows it."""
        beat = json.loads((self.folder / f"attempts/{attempt}/rank-{rank}/heartbeat.json").read_text())
        for pid in self.terminal.cluster.processes(beat["host"]):
            status = Path(f"/proc/{pid}/status").read_text()
            inner = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[-1]
            if inner == str(beat["pid"]):
                return beat["host"], pid
        raise AssertionError(f"rank {rank} has no process on {beat['host']}")

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


def _job_id(said: str) -> str:
    return said.partition("slurm:")[2].partition(";")[0]
