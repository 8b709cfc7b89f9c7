"""How a run is handed over: one command at a time, and nothing that a cluster has taken is lost.

The recipe of a job is in the run's folder before the cluster has the job, its record (moe_cluster/records.py) as soon
as there is an id. A job that cannot be written down is ended again, since nobody would find it.
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
"""In the folder of a run's jobs: held by the command that hands the run over, released by its end however it ends."""


@dataclass(frozen=True)
class Submission:
    """A run that is about to be handed over."""

    run_dir: Path
    recipe: Recipe
    before: Sequence[JobRecord] = field(default=())
    """Its jobs until now, the newest last."""

    @property
    def recipe_file(self) -> Path:
        """Where the job will read its recipe."""
        return self.run_dir / JOBS_DIR / f"recipe-{len(self.before) + 1}.yaml"

    @property
    def last(self) -> JobRecord | None:
        """The run's last job."""
        return self.before[-1] if self.before else None


def of_run(run_dir: Path, recipe: Recipe) -> Submission:
    """A submission after those that are on record. Raises ClusterError if they cannot be read."""
    return Submission(run_dir, recipe, records.read(run_dir))


def hand_over(
    asked: Request, submissions: Sequence[Submission], specs: Sequence[JobSpec], at_once: int | None = None
) -> list[str]:
    """Give runs to a cluster and return their jobs' ids; `specs` are in the order of `submissions`.

    Raises RunError, before anything is written, if another command has handed one of them over since it was looked
    at. Raises ClusterError or RunError if not all were taken; those that were are on record, as the message says, and
    of the others nothing is left.
    """
    common, made, taken = Made(), [Made() for _ in submissions], list[str]()
    run_dirs = [submission.run_dir for submission in submissions]
    common.expect(Path(os.path.commonpath(run_dirs)) / JOBS_DIR)  # of a sweep on Slurm
    for each, run_dir in zip(made, run_dirs, strict=True):
        each.expect(run_dir / JOBS_DIR / LOCK_FILE)
    try:
        with ExitStack() as held:
            for submission in submissions:
                held.enter_context(_alone(submission))
            _hand_over(asked, submissions, specs, at_once, taken)
    except (ClusterError, RunError):
        for each in made[len(taken) :]:
            each.take_back()
        if not taken:
            common.take_back()
        raise
    return taken


def _hand_over(
    asked: Request,
    submissions: Sequence[Submission],
    specs: Sequence[JobSpec],
    at_once: int | None,
    taken: list[str],
) -> None:
    """Give runs that are held to a cluster, and add the id of each job that it takes to `taken`."""
    lost: list[str] = []
    try:
        for submission in submissions:
            write_recipe(submission.recipe_file, submission.recipe)
        for submission, job_id in zip(submissions, asked.executor.submit_many(specs, at_once), strict=True):
            taken.append(job_id)
            lost += _recorded(submission.run_dir, asked, job_id)
    except (ClusterError, RunError) as error:
        for submission in submissions[len(taken) :]:
            submission.recipe_file.unlink(missing_ok=True)
        raise type(error)("\n".join([*lost, f"{error}{_so_far(len(taken), specs)}"])) from None
    if lost:
        raise RunError("\n".join(lost))


def _so_far(number: int, specs: Sequence[JobSpec]) -> str:
    if len(specs) == 1:
        return ""
    return f"; of {len(specs)} runs {number} were submitted before, and the same command submits the others"


def _recorded(run_dir: Path, asked: Request, job_id: str) -> list[str]:
    """Write down a job that a cluster has taken, or else end it again and return what there is to say of it."""
    record = JobRecord(
        cluster=asked.cluster,
        id=job_id,
        time=time.time(),
        user=user_name(),
        host=socket.gethostname(),
        resources=asked.resources,
        options=asked.options,
        directives=asked.directives,
        max_restarts=asked.max_restarts,
        environment=asked.environment,
        setup=asked.setup,
        place=Place.of(run_dir),
    )
    try:
        records.append(run_dir, record)
    except OSError as error:
        return [f"{RunError.unwritable(run_dir, error)}; {_ended_again(asked, job_id, run_dir)}"]
    return []


def user_name() -> str:
    """Who submits; a number where the machine has no name for them, as in many containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # the one until Python 3.12, the other from then on
        return str(os.getuid())


def _ended_again(asked: Request, job_id: str, run_dir: Path) -> str:
    job = f"{asked.cluster}:{job_id}"
    try:
        asked.executor.cancel(job_id, run_dir)
    except ClusterError as error:
        return f"its job {job} is on no record and may run: end it by the cluster's own means ({error})"
    return f"its job {job}, which would be on no record, was told to end"


@contextmanager
def _alone(submission: Submission) -> Iterator[None]:
    """Hold the run's submissions. Raises RunError if another command holds them, or has made one meanwhile."""
    run_dir = submission.run_dir
    path = run_dir / JOBS_DIR / LOCK_FILE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # written: on NFS, a lock alone needs that
    except OSError as error:
        raise RunError.unwritable(run_dir, error) from None
    try:
        _lock(descriptor, run_dir)
        if records.read(run_dir) != list(submission.before):
            raise RunError(
                f"run_dir={run_dir}: another command has submitted it at this moment; see `moe-train status "
                f"{run_dir}`, or choose another --run-dir"
            )
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, run_dir: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunError(
            f"run_dir={run_dir}: another command is submitting it at this moment; see `moe-train status {run_dir}` "
            "once that has ended, or choose another --run-dir"
        ) from None
    except OSError as error:
        raise RunError(
            f"run_dir={run_dir}: its file system has no locks ({error.strerror}); choose another --run-dir"
        ) from None


def is_free(submission: Submission) -> bool:
    """Whether no job of this run may still run. Raises ClusterError if its scheduler cannot be asked."""
    return submission.last is None or last_status(submission.run_dir, submission.last).state.is_over


def require_free(submission: Submission) -> None:
    """Raise RunError if a job of this run may still run: two would write to one folder."""
    if submission.last is None:
        return
    status = last_status(submission.run_dir, submission.last)
    if not status.state.is_over:
        raise RunError(
            f"run_dir={submission.run_dir}: its job {submission.last} is {status.state}; wait for its end, end it with "
            f"`moe-train cancel {submission.run_dir}`, or choose another --run-dir"
        )


def last_status(run_dir: Path, record: JobRecord) -> JobStatus:
    """What the scheduler says of a recorded job. Raises ClusterError if it cannot be asked."""
    return executor(record.cluster, record.options).status(record.id, run_dir)


def write_recipe(path: Path, recipe: Recipe) -> None:
    """Put the resolved recipe where the job will read it. Raises RunError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, to_yaml(recipe), durable=True)
    except OSError as error:
        raise RunError.unwritable(path.parent.parent, error) from None
