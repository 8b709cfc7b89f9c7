"""Submits runs to a cluster, one command at a time for each run, and records every job that a cluster accepts.

The recipe of a job is in the run's folder before the job is submitted, its record (moe_cluster/records.py) as soon as
it has an id. A job that cannot be recorded is cancelled, because no command could find it.
"""

import fcntl
import getpass
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from moe_cluster import records
from moe_cluster.atomic import replace_text
from moe_cluster.errors import ClusterError
from moe_cluster.executor import JobStatus, executor
from moe_cluster.job import JobSpec
from moe_cluster.place import Place
from moe_cluster.records import JOBS_DIR, JobRecord
from moe_train.config.load import to_yaml
from moe_train.config.schema import Recipe
from moe_train.errors import RunError
from moe_train.jobs.request import Request
from moe_train.made import Made

LOCK_FILE = "lock"
"""Lies in the folder of a run's jobs. The command that submits the run holds it; the kernel releases it."""


@dataclass(frozen=True)
class Submission:
    """Describes a run that is about to be submitted."""

    run_dir: Path
    recipe: Recipe
    before: Sequence[JobRecord] = field(default=())
    """Its earlier jobs, the newest last."""

    @property
    def recipe_file(self) -> Path:
        """Returns the path from which the job reads its recipe."""
        return self.run_dir / JOBS_DIR / f"recipe-{len(self.before) + 1}.yaml"

    @property
    def last(self) -> JobRecord | None:
        """Returns the run's last job; None without one."""
        return self.before[-1] if self.before else None


def of_run(run_dir: Path, recipe: Recipe) -> Submission:
    """Returns a submission of a run with its recorded jobs. Raises ClusterError if they cannot be read."""
    return Submission(run_dir, recipe, records.read(run_dir))


def submit_runs(
    request: Request, submissions: Sequence[Submission], specs: Sequence[JobSpec], at_once: int | None = None
) -> list[str]:
    """Submit runs and return the ids of their jobs; `specs` are in the order of `submissions`.

    Raises RunError, before anything is written, if another command has submitted one of them since its records were
    read. Raises ClusterError or RunError if the cluster did not accept all of them; accepted jobs are recorded, as the
    message says, and the others leave nothing behind.
    """
    common, made, job_ids = Made(), [Made() for _ in submissions], list[str]()
    run_dirs = [submission.run_dir for submission in submissions]
    common.expect(Path(os.path.commonpath(run_dirs)) / JOBS_DIR)  # of a sweep on Slurm
    for each, run_dir in zip(made, run_dirs, strict=True):
        each.expect(run_dir / JOBS_DIR / LOCK_FILE)
    try:
        with ExitStack() as locks:
            for submission in submissions:
                locks.enter_context(_alone(submission))
            _submit_locked(request, submissions, specs, at_once, job_ids)
    except (ClusterError, RunError):
        for each in made[len(job_ids) :]:
            each.take_back()
        if not job_ids:
            common.take_back()
        raise
    return job_ids


def _submit_locked(
    request: Request,
    submissions: Sequence[Submission],
    specs: Sequence[JobSpec],
    at_once: int | None,
    job_ids: list[str],
) -> None:
    """Submit runs that are locked, and add the id of each accepted job to `job_ids`."""
    problems: list[str] = []
    try:
        for submission in submissions:
            write_recipe(submission.recipe_file, submission.recipe)
        for submission, job_id in zip(submissions, request.executor.submit_many(specs, at_once), strict=True):
            job_ids.append(job_id)
            problems += _record(submission.run_dir, request, job_id)
    except (ClusterError, RunError) as error:
        for submission in submissions[len(job_ids) :]:
            submission.recipe_file.unlink(missing_ok=True)
        raise type(error)("\n".join([*problems, f"{error}{_so_far(len(job_ids), specs)}"])) from None
    if problems:
        raise RunError("\n".join(problems))


def _so_far(number: int, specs: Sequence[JobSpec]) -> str:
    if len(specs) == 1:
        return ""
    return f"; {number} of {len(specs)} runs were submitted; run the same command again to submit the others"


def _record(run_dir: Path, request: Request, job_id: str) -> list[str]:
    """Record an accepted job; if that fails, cancel it and return the problem."""
    record = JobRecord(
        cluster=request.cluster,
        id=job_id,
        time=time.time(),
        user=user_name(),
        host=socket.gethostname(),
        resources=request.resources,
        options=request.options,
        directives=request.directives,
        max_restarts=request.max_restarts,
        environment=request.environment,
        setup=request.setup,
        place=Place.of(run_dir),
    )
    try:
        records.append(run_dir, record)
    except OSError as error:
        return [f"{RunError.unwritable(run_dir, error)}; {_cancel_unrecorded(request, job_id, run_dir)}"]
    return []


def user_name() -> str:
    """Returns the user's name, or the user id where it has no name, as in many containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # KeyError until Python 3.12, OSError from then on
        return str(os.getuid())


def _cancel_unrecorded(request: Request, job_id: str, run_dir: Path) -> str:
    job = f"{request.cluster}:{job_id}"
    try:
        request.executor.cancel(job_id, run_dir)
    except ClusterError as error:
        return (
            f"its job {job} is not recorded and may run: cancel it with the cluster's own commands ({error})"
        )
    return f"its job {job}, which could not be recorded, was cancelled"


@contextmanager
def _alone(submission: Submission) -> Iterator[None]:
    """Lock the run's submissions. Raises RunError if another command holds the lock, or has submitted meanwhile."""
    run_dir = submission.run_dir
    path = run_dir / JOBS_DIR / LOCK_FILE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # opened for writing: NFS locks need that
    except OSError as error:
        raise RunError.unwritable(run_dir, error) from None
    try:
        _lock(descriptor, run_dir)
        if records.read(run_dir) != list(submission.before):
            raise RunError(
                f"run_dir={run_dir}: another command has just submitted it; see `moe-train status {run_dir}`, or "
                "choose another --run-dir"
            )
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, run_dir: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunError(
            f"run_dir={run_dir}: another command is submitting it now; see `moe-train status {run_dir}` when that has "
            "finished, or choose another --run-dir"
        ) from None
    except OSError as error:
        raise RunError(
            f"run_dir={run_dir}: its file system does not support locks ({error.strerror}); choose another --run-dir"
        ) from None


def is_free(submission: Submission) -> bool:
    """Returns whether all jobs of this run have ended. Raises ClusterError if its scheduler cannot be asked."""
    return submission.last is None or last_status(submission.run_dir, submission.last).state.is_over


def require_free(submission: Submission) -> None:
    """Raise RunError if a job of this run may still run: two jobs would write to one folder."""
    if submission.last is None:
        return
    status = last_status(submission.run_dir, submission.last)
    if not status.state.is_over:
        raise RunError(
            f"run_dir={submission.run_dir}: its job {submission.last} is {status.state}; wait for it to end, cancel it "
            f"with `moe-train cancel {submission.run_dir}`, or choose another --run-dir"
        )


def last_status(run_dir: Path, record: JobRecord) -> JobStatus:
    """Ask the scheduler for the status of a recorded job. Raises ClusterError if it cannot be asked."""
    return executor(record.cluster, record.options).status(record.id, run_dir)


def write_recipe(path: Path, recipe: Recipe) -> None:
    """Write the resolved recipe to the path from which the job reads it. Raises RunError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, to_yaml(recipe), durable=True)
    except OSError as error:
        raise RunError.unwritable(path.parent.parent, error) from None
