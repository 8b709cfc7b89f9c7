"""Runs of a tiny recipe on the Ray of ray_cluster.py, through `moe-train` commands alone, and what they leave."""

import json
import os
import time
from pathlib import Path

from own_processes import wait_for
from ray_cluster import RayCluster
from slurm_jobs import SlurmRun, Terminal

TWO_NODES = ("--nodes", "2", "parallel.expert=2")


class RayTerminal(Terminal):
    """A working directory that all nodes see, with a recipe in it, and commands typed there."""

    cluster: RayCluster

    def hand_over(self, name: str, *words: str, **extra: str) -> "RayRun":
        """Submit the recipe under a name of its own."""
        folder = self.folder / "runs" / name
        where = ("--cluster", "ray", "--address", self.cluster.address, "--run-dir", str(folder))
        said = self("submit", "small.yaml", f"name={name}", *where, *words, **extra)
        return RayRun(self, folder, said.partition("ray:")[2].partition(";")[0])


class RayRun(SlurmRun):
    """One run folder and the job that works on it."""

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

    def wait_until(self, state: str, timeout_s: float = 150.0) -> None:
        """Wait until `moe-train status` says so; fail as soon as it says another end."""
        deadline = time.monotonic() + timeout_s
        while (now := self.state) != state:
            assert now in ("queued", "running"), self.output
            assert time.monotonic() < deadline, f"{state} did not come in {timeout_s:.0f} s\n{self.output}"
            time.sleep(1.0)

    def workers_of(self, attempt: int) -> int:
        """How many workers an attempt has had."""
        return len(list(self.folder.glob(f"attempts/{attempt}/rank-*/heartbeat.json")))

    def wait_for_end_of(self, attempt: int, timeout_s: float = 120.0) -> None:
        """Wait until the launcher has seen an attempt end."""
        wait_for(
            lambda: (self.folder / f"attempts/{attempt}/outcome.json").exists(), 0.05, timeout_s=timeout_s
        )


def started(path: Path) -> float:
    """When a file was written first, in seconds since 1970."""
    return os.stat(path).st_mtime
