"""Runs of a tiny recipe on the Ray of ray_cluster.py, through `moe-train` commands alone, and what they leave."""

import json
import time

import pytest
from own_processes import wait_for
from ray_cluster import RayCluster
from slurm_jobs import SlurmRun, Terminal

TWO_NODES = ("--nodes", "2", "parallel.expert=2")


class RayTerminal(Terminal):
    """A working directory that all nodes see, with a recipe in it, and commands typed there."""

    cluster: RayCluster

    def hand_over(self, name: str, *words: str, **extra: str) -> "RayRun":
        """Submit the recipe under a name of its own."""
        run = RayRun(self, self.folder / "runs" / name, "")
        said = self("submit", "small.yaml", f"name={name}", *run.where, *words, **extra)
        run.job_id = said.partition("ray:")[2].partition(";")[0]
        return run


class RayRun(SlurmRun):
    """One run folder and the job that works on it."""

    @property
    def where(self) -> tuple[str, ...]:
        """Options that name the cluster and the folder."""
        address = self.terminal.cluster.address
        return ("--cluster", "ray", "--address", address, "--run-dir", str(self.folder))

    @property
    def output(self) -> str:
        """What the job has said."""
        return self.terminal("logs", str(self.folder))

    @property
    def state(self) -> str:
        """One word of `moe-train status`."""
        return str(self.status()["state"])

    def outcome(self, attempt: int) -> dict[str, object]:
        """How the launcher saw an attempt end."""
        return dict(json.loads((self.folder / f"attempts/{attempt}/outcome.json").read_text()))

    def wait_until(self, state: str, timeout_s: float = 300.0) -> None:
        """Wait until `moe-train status` says so and the launcher has ended; fail as soon as it says another end."""
        deadline = time.monotonic() + timeout_s
        while (now := self.state) != state:
            assert now in ("queued", "running"), self.output
            assert time.monotonic() < deadline, f"{state} did not come in {timeout_s:.0f} s\n{self.output}"
            time.sleep(2.0)
        wait_for((self.folder / f"attempts/{self.attempts}/outcome.json").exists, every_s=0.1, timeout_s=240)

    def workers_of(self, attempt: int) -> int:
        """How many workers an attempt has had."""
        return len(list(self.folder.glob(f"attempts/{attempt}/rank-*/heartbeat.json")))

    def recovery(self, attempt: int) -> tuple[float, float]:
        """Seconds from this call until attempt `attempt` has ended, and until the next one computes."""
        began = time.monotonic()
        end = self.folder / f"attempts/{attempt}/outcome.json"
        wait_for(end.exists, every_s=0.05, timeout_s=240)
        ended = time.monotonic() - began
        self.wait_for_attempt(attempt + 1, timeout_s=240)
        return ended, time.monotonic() - began

    def wait_for_attempt_folder(self, number: int) -> None:
        """Wait until an attempt is about to begin."""
        wait_for((self.folder / f"attempts/{number}").exists, every_s=0.05, timeout_s=240)

    def resume(self) -> None:
        """Hand the run over again."""
        said = self.terminal("resume", str(self.folder))
        self.job_id = said.partition("ray:")[2].partition(";")[0]

    def cancel_after(self, more_steps: int) -> None:
        """Cancel the run, which has no end of its own, once it has made so many more steps."""
        self.wait_for_step(self.step + more_steps, timeout_s=240)
        self.terminal("cancel", str(self.folder))
        self.wait_until("stopped")

    def assert_like_one_worker(self, *overrides: str) -> None:
        """Every row from the first to the last is there, with the loss of a run of one worker, up to rounding."""
        alone = RayRun(self.terminal, self.folder.with_name(f"{self.folder.name}-alone"), "")
        words = ("run", "small.yaml", "--run-dir", str(alone.folder), *overrides, f"steps={self.step}")
        self.terminal(*words)
        losses, others = (
            {step: value for (step, key), value in run.numbers().items() if key == "loss" and step % 2 == 0}
            for run in (self, alone)
        )
        assert losses == pytest.approx(others, rel=1e-4)
