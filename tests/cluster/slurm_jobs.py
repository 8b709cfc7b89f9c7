"""Runs of a tiny recipe on the Slurm of slurm_cluster.py: what cluster_jobs.py has, and what Slurm says."""

from pathlib import Path

from cluster_jobs import PATIENCE_S, Run, Terminal
from own_processes import wait_for
from slurm_cluster import SlurmCluster


class SlurmTerminal(Terminal):
    """A working directory that all nodes see, with a recipe in it, and commands typed there."""

    cluster: SlurmCluster
    where = ("--cluster", "slurm")

    def submit(self, name: str, *words: str, runs: Path | None = None, **extra: str) -> "SlurmRun":
        """Hand the recipe to Slurm under a name of its own."""
        return SlurmRun(self, *self._submit(name, *words, runs=runs, **extra))


class SlurmRun(Run):
    """One run folder and the job that works on it."""

    terminal: SlurmTerminal

    @property
    def output(self) -> str:
        """What the job has said, without asking anybody."""
        path = self.folder / f"jobs/{self.job_id}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def job(self) -> str:
        """Slurm's record of the job."""
        return self.terminal.cluster.call("scontrol", "show", "job", self.job_id)

    def wait_for_job(self, state: str) -> str:
        """Wait until Slurm says so; returns its record."""
        ends = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")

        def is_there() -> bool:
            record = self.job()
            assert state not in ends or not any(
                f"JobState={end} " in record for end in ends if end != state
            ), f"{record}\n{self.output}"
            return f"JobState={state} " in record

        wait_for(is_there, every_s=0.2, timeout_s=PATIENCE_S)
        return self.job()
