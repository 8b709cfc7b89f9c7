"""Runs jobs in the background of this machine, which has no scheduler.

queue.py keeps a job's state in its run's folder (jobs/ID.json), so it outlives the terminal that submitted it. Only the
machine that runs a job can check whether it is alive.
"""

import json
import os
import secrets
import shlex
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from moe_cluster.atomic import replace_text
from moe_cluster.contract import DONE, JOB_VARIABLE, PREEMPTED
from moe_cluster.errors import ClusterError, JobError
from moe_cluster.executor import JobState, JobStatus
from moe_cluster.job import JobSpec
from moe_cluster.linux import is_alive, start_time
from moe_cluster.local import queue
from moe_cluster.own_code import module_command, with_own_code
from moe_cluster.records import JOBS_DIR, jobs_dir
from moe_cluster.tail import lines_of


class LocalExecutor:
    """Implements the executor protocol for this machine: see executor.py."""

    def __init__(self, options: Mapping[str, str]) -> None:
        if options:
            raise JobError(f"--option {next(iter(options))}: --cluster local has no options; leave it out")

    def render(self, job: JobSpec) -> str:
        self._require_simple(job)
        settings = "".join(f"{name}={shlex.quote(value)} " for name, value in job.environment.items())
        return f"{settings}{shlex.join(_command(job))}\n"

    def submit(self, job: JobSpec) -> str:
        return self.submit_many([job], None)[0]

    def submit_many(self, jobs: Sequence[JobSpec], at_once: int | None) -> list[str]:
        for job in jobs:
            self._require_simple(job)
        ids = [secrets.token_hex(4) for _ in jobs]
        paths, queue = [_file(job.run_dir, job_id) for job, job_id in zip(jobs, ids, strict=True)], None
        try:
            for job, job_id in zip(jobs, ids, strict=True):
                _prepare(job, job_id)
            queue = _queue_of(paths, at_once or len(jobs))
            for path in paths:
                replace_text(path.with_suffix(".queue"), f"{queue.pid} {start_time(queue.pid)}")
        except OSError as error:
            if queue is not None:
                queue.terminate()
            for path in paths:
                path.unlink(missing_ok=True)
                path.with_suffix(".queue").unlink(missing_ok=True)
            raise ClusterError(
                f"{error.filename}: cannot be written ({error.strerror}); free space or correct its permissions; "
                "nothing was submitted"
            ) from None
        return ids

    def status(self, job_id: str, run_dir: Path) -> JobStatus:
        state = _state(run_dir, job_id)
        node = (state["host"],)
        if (code := state.get("exit_code")) is not None:
            return JobStatus(_ended(code), f"exit code {code}", node)
        _require_here(job_id, state)
        if "pid" in state:
            running = _lives(state["pid"], state["start_time"])
            return JobStatus(
                JobState.RUNNING if running else JobState.FAILED, "" if running else "killed", node
            )
        waiting = _lives(*_queue(run_dir, job_id)) and not queue.is_cancelled(_file(run_dir, job_id))
        return JobStatus(
            JobState.PENDING if waiting else JobState.CANCELLED, "" if waiting else "never started", node
        )

    def logs(self, job_id: str, run_dir: Path, follow: bool) -> Iterator[str]:
        path = run_dir / JOBS_DIR / f"{job_id}.log"
        return lines_of(path, lambda: not follow or self.status(job_id, run_dir).state.is_over)

    def cancel(self, job_id: str, run_dir: Path) -> None:
        state = _state(run_dir, job_id)
        _require_here(job_id, state)
        if "pid" in state:
            if _lives(state["pid"], state["start_time"]):
                try:
                    os.kill(state["pid"], signal.SIGTERM)
                except ProcessLookupError:
                    pass  # it has ended meanwhile
                except PermissionError:
                    raise ClusterError(
                        f"local:{job_id}: is process {state['pid']} of another user; only that user can cancel it"
                    ) from None
            return
        try:  # the queue may be about to begin it
            queue.cancel(_file(run_dir, job_id))
        except OSError as error:
            raise ClusterError(
                f"local:{job_id}: cannot be cancelled ({error}); free space, then try again"
            ) from None

    def _require_simple(self, job: JobSpec) -> None:
        if job.resources.nodes > 1:
            raise JobError(
                f"--nodes {job.resources.nodes}: --cluster local has only this node; use --nodes 1"
            )
        if job.after:
            raise JobError("--after: --cluster local does not support dependencies; use --cluster slurm")
        if job.setup:
            raise JobError(
                f"--setup {job.setup[0]}: --cluster local does not support it; run the command before you submit"
            )
        if job.directives:
            raise JobError(
                f"--directive {job.directives[0]}: --cluster local has no directives; leave it out"
            )


def _command(job: JobSpec) -> list[str]:
    return module_command("moe_train.cli", *job.command, "--launcher", "local")


def _prepare(job: JobSpec, job_id: str) -> None:
    """Write the state of a job that is about to be queued."""
    jobs_dir(job)
    own = {JOB_VARIABLE: f"local:{job_id}"}
    content = {
        "command": _command(job),
        "environment": {**job.environment, **own},
        "host": socket.gethostname(),
    }
    replace_text(_file(job.run_dir, job_id), json.dumps(content, indent=1) + "\n")


def _file(run_dir: Path, job_id: str) -> Path:
    return run_dir / JOBS_DIR / f"{job_id}.json"


def _queue_of(paths: Sequence[Path], at_once: int) -> "subprocess.Popen[bytes]":
    """Start the process that runs these jobs (queue.py); it outlives this one."""
    return subprocess.Popen(
        module_command("moe_cluster.local.queue", str(at_once), *map(str, paths)),
        env=with_own_code(os.environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _state(run_dir: Path, job_id: str) -> dict[str, Any]:
    path = _file(run_dir, job_id)
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"local:{job_id}: {path} cannot be read ({error}); restore it, or submit the run again"
        ) from None


def _require_here(job_id: str, state: Mapping[str, Any]) -> None:
    if state["host"] != socket.gethostname():
        raise ClusterError(f"local:{job_id}: runs on {state['host']}; run this command there")


def _queue(run_dir: Path, job_id: str) -> tuple[int, int]:
    try:
        pid, began = (run_dir / JOBS_DIR / f"{job_id}.queue").read_text().split()
        return int(pid), int(began)
    except (OSError, ValueError):
        return 0, 0


def _lives(pid: int, began: int) -> bool:
    """Returns whether the process that started at `began` is alive: process ids are reused."""
    return pid > 0 and is_alive(pid) and start_time(pid) == began


def _ended(code: int) -> JobState:
    if code == DONE:
        return JobState.DONE
    return JobState.CANCELLED if code in (PREEMPTED, -signal.SIGTERM) else JobState.FAILED
