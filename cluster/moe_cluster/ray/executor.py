"""Submits jobs to a Ray cluster through its Jobs API: the job's command runs on the head with RayLauncher.

The local code is uploaded with the job; recipe and run are in the run's folder, which all nodes must see. Ray itself
reads the token from RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH); it is not read here.
"""

import json
import re
import secrets
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_cluster.contract import JOB_VARIABLE, PREEMPTED
from moe_cluster.errors import ClusterError, JobError
from moe_cluster.executor import JobState, JobStatus
from moe_cluster.job import JobSpec, Resources
from moe_cluster.own_code import module_command, package_folders
from moe_cluster.ray.rest import job_details
from moe_cluster.ray.settings import SETTINGS
from moe_cluster.setup_lines import require_shell
from moe_cluster.share import SHARE_VARIABLE

if TYPE_CHECKING:  # Ray takes a second to import, and `render` and `status` do without
    from moe_cluster.ray.client import Client

EXCLUDED = ("__pycache__",)
"""Files of the packages that are not uploaded with a job."""
STOP_WAIT_S = 600
"""Seconds that a cancelled job has to save before Ray kills it; Ray's own default is 3 s."""
STATES = {
    "PENDING": JobState.PENDING,
    "RUNNING": JobState.RUNNING,
    "SUCCEEDED": JobState.DONE,
    "FAILED": JobState.FAILED,
    "STOPPED": JobState.CANCELLED,
}


class RayExecutor:
    """Implements the executor protocol for a Ray cluster: see executor.py. Its only option is `address`, that of the
    cluster's dashboard."""

    def __init__(self, options: Mapping[str, str]) -> None:
        unknown = set(options) - {"address"}
        if unknown:
            raise JobError(
                f"--option {min(unknown)}: --cluster ray has no such option; its only one is address"
            )
        self.address = options.get("address", "")
        if not re.fullmatch(r"https?://[^/\s@]+/?", self.address):
            raise JobError(
                f"--address {re.sub('//.*@', '//...@', self.address) or '(none)'}: is not the address of a Ray "
                "cluster's dashboard; use one such as --address http://head:8265 (put a token into RAY_AUTH_TOKEN or "
                "RAY_AUTH_TOKEN_PATH, never into an address)"
            )

    def render(self, job: JobSpec) -> str:
        """See executor.py."""
        request = {"address": self.address, **_request(job, f"{_plain(job.name)}-XXXXXXXX")}
        return json.dumps(request, indent=2) + "\n"

    def submit(self, job: JobSpec) -> str:
        """See executor.py."""
        (job_id,) = self.submit_many([job], None)
        return job_id

    def submit_many(self, jobs: Sequence[JobSpec], at_once: int | None) -> Iterator[str]:
        """See executor.py."""
        if at_once is not None:
            raise JobError(
                f"--at-once {at_once}: --cluster ray has no such limit, jobs wait for room by themselves; leave it out"
            )
        requests = [_request(job, f"{_plain(job.name)}-{secrets.token_hex(4)}") for job in jobs]
        client = self._connect()
        return (client.submit(request) for request in requests)

    def status(self, job_id: str, run_dir: Path) -> JobStatus:
        """See executor.py."""
        return _status(self.address, job_id)

    def logs(self, job_id: str, run_dir: Path, follow: bool) -> Iterator[str]:
        """See executor.py."""
        client = self._connect()
        if not follow:
            return iter(client.logs(job_id).splitlines())
        from moe_cluster.ray.client import followed

        return followed(client, job_id, lambda: self.status(job_id, run_dir).state.is_over)

    def cancel(self, job_id: str, run_dir: Path) -> None:
        """See executor.py. Ray sends SIGTERM and returns; the job then has STOP_WAIT_S to save."""
        self._connect().stop(job_id)

    def _connect(self) -> "Client":
        from moe_cluster.ray.client import Client

        return Client(self.address)


def _request(job: JobSpec, job_id: str) -> dict[str, Any]:
    """Returns the request to the Jobs API. Raises JobError for options that Ray does not support."""
    _require_possible(job)
    words = ["exec", *module_command("moe_train.cli", *job.command, "--launcher", "ray", python="python")]
    own = {
        JOB_VARIABLE: f"ray:{job_id}",
        SHARE_VARIABLE: json.dumps(_share(job.resources)),
        "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S),
    }
    return {
        "submission_id": job_id,
        "entrypoint": "\n".join([*_setup(job), shlex.join(words)]),
        "runtime_env": {
            "py_modules": package_folders(),
            "excludes": list(EXCLUDED),
            "env_vars": {**SETTINGS, **job.environment, **own},
        },
        "metadata": {"run_dir": str(job.run_dir), "name": job.name},
    }


def _setup(job: JobSpec) -> list[str]:
    """Returns the setup commands of site and user, for a plain sh; the job ends at the first that fails."""
    require_shell(job.setup)
    message = """trap 'code=$?; echo "moe-train: setup ended with exit code $code" >&2; exit "$code"' EXIT"""
    return [message, "set -e", *job.setup, "set +e", "trap - EXIT"] if job.setup else []


def _share(resources: Resources) -> dict[str, Any]:
    needs: dict[str, float] = {"CPU": resources.cpus_per_worker or 1}
    if resources.gpus_per_worker:
        needs["GPU"] = resources.gpus_per_worker
    if resources.memory_gib is not None:
        needs["memory"] = int(resources.memory_gib * 2**30 / resources.workers_per_node)
    return {"resources": needs, "per_node": resources.workers_per_node}


def _require_possible(job: JobSpec) -> None:
    has_none = "--cluster ray does not support it; leave it out"
    if job.directives:
        raise JobError(f"--directive {job.directives[0]}: {has_none}")
    if job.resources.time_limit_min is not None:
        raise JobError(f"--time-limit {job.resources.time_limit_min}: {has_none}")
    if job.after:
        raise JobError(f"--after {job.after[0]}: {has_none}, or use --cluster slurm")


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:60]


def _status(address: str, job_id: str) -> JobStatus:
    details = job_details(address, job_id)
    if details is None:
        return JobStatus(JobState.UNKNOWN, f"the cluster at {address} has no job {job_id}")
    if details.get("status") not in STATES:
        raise ClusterError(
            f"--address {address}: the Ray cluster returned an unknown state of job {job_id} ({details}); "
            "check the version of Ray"
        )
    state, node = (
        STATES[details["status"]],
        re.sub(r"^https?://|:\d+$", "", details.get("driver_agent_http_address") or ""),
    )
    reason = (details.get("message") or "").partition(", last available logs")[0].strip()
    if state is JobState.FAILED and details.get("driver_exit_code") == PREEMPTED:
        state = JobState.CANCELLED
    return JobStatus(state, reason, (node,) if node else ())
