"""Runs of a tiny recipe on the Ray of ray_cluster.py: what cluster_jobs.py has, and how Ray's runs end."""

import time
from pathlib import Path

from cluster_jobs import PATIENCE_S, Run, Terminal
from own_processes import wait_for
from ray_cluster import RayCluster


class RayTerminal(Terminal):
    """A working directory that all nodes see, with a recipe in it, and commands typed there."""

    cluster: RayCluster

    @property
    def where(self) -> tuple[str, ...]:
        """Options that name the cluster."""
        return ("--cluster", "ray", "--address", self.cluster.address)

    def submit(self, name: str, *words: str, runs: Path | None = None, **extra: str) -> "RayRun":
        """Hand the recipe to Ray under a name of its own."""
        return RayRun(self, *self._submit(name, *words, runs=runs, **extra))


class RayRun(Run):
    """One run folder and the job that works on it."""

    terminal: RayTerminal

    @property
    def state(self) -> str:
        """One word of `moe-train status`."""
        return str(self.status()["state"])

    def wait_until(self, state: str, timeout_s: float = PATIENCE_S) -> None:
        """Wait until `moe-train status` says so and the launcher has ended; fail as soon as it says another end."""
        deadline = time.monotonic() + timeout_s
        while (now := self.state) != state:
            assert now in ("queued", "running"), self.output
            assert time.monotonic() < deadline, f"{state} did not come in {timeout_s:.0f} s\n{self.output}"
            time.sleep(2.0)
        wait_for((self.folder / f"attempts/{self.attempts}/outcome.json").exists, every_s=0.1, timeout_s=240)

    def recovery(self, attempt: int) -> tuple[float, float]:
        """Seconds from this call until attempt `attempt` has ended, and until the next one computes."""
        began = time.monotonic()
        end = self.folder / f"attempts/{attempt}/outcome.json"
        wait_for(end.exists, every_s=0.05, timeout_s=240)
        ended = time.monotonic() - began
        self.wait_for_attempt(attempt + 1)
        return ended, time.monotonic() - began

    def wait_for_attempt_folder(self, number: int) -> None:
        """Wait until an attempt is about to begin."""
        wait_for((self.folder / f"attempts/{number}").exists, every_s=0.05, timeout_s=240)

    def cancel_after(self, more_steps: int) -> None:
        """Cancel the run, which has no end of its own, once it has made so many more steps."""
        self.wait_for_step(self.step + more_steps)
        self.terminal("cancel", str(self.folder))
        self.wait_until("stopped")
