"""Submits jobs to Slurm as scripts (sbatch.py), and asks for their state (client.py).

The job's output is RUN/jobs/ID.log, its script RUN/jobs/ID.sh.
"""

import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from moe_cluster.errors import ClusterError, JobError
from moe_cluster.executor import JobState, JobStatus
from moe_cluster.job import JobSpec
from moe_cluster.records import JOBS_DIR, create_folder, jobs_dir
from moe_cluster.slurm import client, sbatch
from moe_cluster.slurm.options import PYTHON, require_options
from moe_cluster.tail import SCHEDULER_S, lines_of


class SlurmExecutor:
    """Implements the executor protocol for the Slurm of this machine's sbatch: see executor.py."""

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
        common = create_folder(sbatch.common_folder(jobs) / JOBS_DIR)
        folders = [jobs_dir(job) for job in jobs]
        array = _submitted(text, common)
        ids = [f"{array}_{number}" for number in range(len(jobs))]
        with _cancelling_unrecorded(array):
            for folder, job_id in zip(folders, ids, strict=True):
                # An array's output has one folder; each run links to it from where a single job's would be.
                link = folder / f"{job_id}.log"
                link.symlink_to(common / link.name)
        return ids

    def status(self, job_id: str, run_dir: Path) -> JobStatus:
        return client.job_status(_checked(job_id))

    def logs(self, job_id: str, run_dir: Path, follow: bool) -> Iterator[str]:
        path = run_dir / JOBS_DIR / f"{_checked(job_id)}.log"
        if not path.exists() and self.status(job_id, run_dir).state is JobState.UNKNOWN:
            raise ClusterError(
                f"slurm:{job_id}: there is no output in {path}, and Slurm does not know the job; check the job id "
                "with sacct"
            )
        return lines_of(path, lambda: not follow or self.status(job_id, run_dir).state.is_over, SCHEDULER_S)

    def cancel(self, job_id: str, run_dir: Path) -> None:
        client.call("scancel", _checked(job_id))


def _submitted(text: str, folder: Path) -> str:
    """Submit a script and return the job id; the script stays in `folder` under that id.

    It is written before it is submitted: a full disk must not lose the id of a queued job.
    """
    draft = folder / f"{secrets.token_hex(4)}.draft"
    try:
        draft.write_text(text)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise ClusterError(
            f"{folder}: cannot be written ({error.strerror}); nothing was submitted; free space or correct its "
            "permissions"
        ) from None
    try:
        job_id = client.submit(text)
    except ClusterError:
        draft.unlink()
        raise
    with _cancelling_unrecorded(job_id):
        draft.rename(folder / f"{job_id}.sh")
    return job_id


@contextmanager
def _cancelling_unrecorded(job_id: str) -> Iterator[None]:
    """Cancels a job whose files cannot be written. Raises ClusterError that says whether it was cancelled."""
    try:
        yield
    except OSError as error:
        reason = f"{error.filename2 or error.filename}: cannot be written ({error.strerror})"
        try:
            client.call("scancel", job_id)
        except ClusterError as failure:
            raise ClusterError(f"{reason}; its job slurm:{job_id} may run: scancel it ({failure})") from None
        raise ClusterError(f"{reason}; its job slurm:{job_id} was cancelled") from None


def _checked(job_id: str) -> str:
    if not sbatch.JOB_ID.fullmatch(job_id):
        raise JobError(f"slurm:{job_id}: is not a valid Slurm job id; use a number such as 123 or 123_4")
    return job_id
