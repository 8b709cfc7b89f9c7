"""Jobs on Slurm: a script (sbatch.py) handed to sbatch, and the questions that can be asked afterwards
(client.py).

The job's output is RUN/jobs/ID.log, the script that was submitted RUN/jobs/ID.sh.
"""

import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from moe_cluster.errors import ClusterError, JobError
from moe_cluster.executor import JobState, JobStatus
from moe_cluster.job import JobSpec
from moe_cluster.records import JOBS_DIR, jobs_dir, made
from moe_cluster.slurm import client, sbatch
from moe_cluster.slurm.options import PYTHON, require_options
from moe_cluster.tail import SCHEDULER_S, lines_of


class SlurmExecutor:
    """The Slurm that this machine's sbatch knows: see executor.py."""

    def __init__(self, options: Mapping[str, str]) -> None:
        require_options(options)
        self.python = options.get(PYTHON, sys.executable)

    def render(self, job: JobSpec) -> str:
        return sbatch.script(job, self.python)

    def submit(self, job: JobSpec) -> str:
        return _submitted(self.render(job), jobs_dir(job))

    def submit_many(self, jobs: Sequence[JobSpec], at_once: int | None) -> list[str]:
        if len(jobs) == 1:
            return [self.submit(jobs[0])]
        text = sbatch.array_script(jobs, at_once, self.python)
        common = made(sbatch.common_folder(jobs) / JOBS_DIR)
        folders = [jobs_dir(job) for job in jobs]
        array = _submitted(text, common)
        ids = [f"{array}_{number}" for number in range(len(jobs))]
        with _taken_back(array):
            for folder, job_id in zip(folders, ids, strict=True):
                # An array's output has one folder; each run's own shows it where that of a single job would be.
                link = folder / f"{job_id}.log"
                link.symlink_to(common / link.name)
        return ids

    def status(self, job_id: str, run_dir: Path) -> JobStatus:
        return client.job_status(_checked(job_id))

    def logs(self, job_id: str, run_dir: Path, follow: bool) -> Iterator[str]:
        path = run_dir / JOBS_DIR / f"{_checked(job_id)}.log"
        if not path.exists() and self.status(job_id, run_dir).state is JobState.UNKNOWN:
            raise ClusterError(f"slurm:{job_id}: has left no output in {path}, and Slurm does not know it")
        return lines_of(path, lambda: not follow or self.status(job_id, run_dir).state.is_over, SCHEDULER_S)

    def cancel(self, job_id: str, run_dir: Path) -> None:
        client.call("scancel", _checked(job_id))


def _submitted(text: str, folder: Path) -> str:
    """The id of a script that Slurm has taken, which stays in `folder` under that id.

    It is written before it is handed over: a full disk must not cost the id of a job that is queued.
    """
    draft = folder / f"{secrets.token_hex(4)}.draft"
    try:
        draft.write_text(text)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise ClusterError(f"{folder}: cannot be written ({error.strerror}); nothing was submitted") from None
    try:
        job_id = client.submit(text)
    except ClusterError:
        draft.unlink()
        raise
    with _taken_back(job_id):
        draft.rename(folder / f"{job_id}.sh")
    return job_id


@contextmanager
def _taken_back(job_id: str) -> Iterator[None]:
    """Cancel a job whose files cannot be written. Raises ClusterError that says what became of it."""
    try:
        yield
    except OSError as error:
        why = f"{error.filename2 or error.filename}: cannot be written ({error.strerror})"
        try:
            client.call("scancel", job_id)
        except ClusterError as refused:
            raise ClusterError(f"{why}; its job slurm:{job_id} may run: scancel it ({refused})") from None
        raise ClusterError(f"{why}; its job slurm:{job_id} was cancelled") from None


def _checked(job_id: str) -> str:
    if not sbatch.JOB_ID.fullmatch(job_id):
        raise JobError(f"slurm:{job_id}: is no id of a Slurm job")
    return job_id
