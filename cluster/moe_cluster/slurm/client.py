"""Calls Slurm's commands, each with a time limit, and quotes Slurm's message if one fails.

Job state comes from the controller (`scontrol`). The accounting (`sacct`), which many clusters lack, is asked only for
jobs that the controller has forgotten. Only machine-readable output is parsed.
"""

import os
import re
import subprocess
from collections.abc import Mapping

from moe_cluster.errors import ClusterError
from moe_cluster.executor import JobState, JobStatus
from moe_cluster.own_code import with_own_code

TIMEOUT_S = 20.0
UNKNOWN_JOB = "Invalid job id specified"
NO_CONTROLLER = re.compile(
    r"Unable to contact slurm controller|Unable to establish (configuration source|controller)|"
    r"Could not establish a configuration source|Socket timed out|Zero Bytes were transmitted",
    re.IGNORECASE,
)
# Slurm's base states and flags; all that are missing here are failures.
STATES: Mapping[str, JobState] = {
    "PENDING": JobState.PENDING,
    "CONFIGURING": JobState.PENDING,
    "REQUEUED": JobState.PENDING,
    "REQUEUE_FED": JobState.PENDING,
    "REQUEUE_HOLD": JobState.PENDING,
    "RESV_DEL_HOLD": JobState.PENDING,
    "SPECIAL_EXIT": JobState.PENDING,
    "RUNNING": JobState.RUNNING,
    "COMPLETING": JobState.RUNNING,
    "RESIZING": JobState.RUNNING,
    "SIGNALING": JobState.RUNNING,
    "STAGE_OUT": JobState.RUNNING,
    "STOPPED": JobState.RUNNING,
    "SUSPENDED": JobState.RUNNING,
    "COMPLETED": JobState.DONE,
    "CANCELLED": JobState.CANCELLED,
    "PREEMPTED": JobState.CANCELLED,
    "REVOKED": JobState.CANCELLED,
}
FIELD = re.compile(r"(\w+)=(\S*)")


def submit(script: str) -> str:
    """Submit a script and return the job id. Raises ClusterError as `call` does, and if sbatch prints no job id."""
    output = call(
        "sbatch", "--parsable", text=script, environment=with_own_code(_of_submission(os.environ, script))
    )
    # A site's own sbatch may print more before the id; on a federation the cluster's name follows it.
    job_id = (output.splitlines() or [""])[-1].strip().partition(";")[0]
    if not job_id.isdecimal():
        raise ClusterError(
            f"sbatch succeeded but printed no job id (it printed: {_words(output) or 'nothing'}); if squeue --me shows "
            "a new job, scancel it, because moe-train cannot manage it"
        )
    return job_id


def call(
    program: str,
    *arguments: str,
    text: str = "",
    timeout_s: float = TIMEOUT_S,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run a Slurm command and return its output. Raises ClusterError with its message if it fails or times out.

    It runs in `environment`, by default this process's own without the variables of a job that it may run in.
    """
    try:
        done = subprocess.run(
            [program, *arguments],
            input=text,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
            env={**_surroundings(os.environ), "LC_ALL": "C"} if environment is None else environment,
        )
    except FileNotFoundError:
        raise ClusterError(
            f"{program}: there is no such program here; go to a machine with Slurm's commands, or put them on PATH"
        ) from None
    except OSError as error:
        raise ClusterError(f"{program}: cannot be run ({error.strerror}); correct its permissions") from None
    except subprocess.TimeoutExpired as error:
        words = _words(error.stderr or b"")
        raise ClusterError(
            f"{program}: Slurm does not answer within {timeout_s:.0f} s{words and ': '}{words}; "
            "check whether its controller can be reached (scontrol ping)"
        ) from None
    if done.returncode == 0:
        return done.stdout
    words = _words(done.stderr) or f"exit code {done.returncode}"
    if NO_CONTROLLER.search(words):
        raise ClusterError(
            f"{program}: Slurm's controller does not answer ({words}); check whether it can be reached (scontrol ping)"
        )
    raise ClusterError(f"{program}: Slurm refused ({words})")


def job_status(job_id: str) -> JobStatus:
    """Ask the controller, or else the accounting, for a job's status. Raises ClusterError if the controller does not
    answer."""
    try:
        return _of_controller(call("scontrol", "show", "job", job_id))
    except ClusterError as error:
        if UNKNOWN_JOB not in str(error):
            raise
        unknown = str(error)
    try:
        rows = call(
            "sacct", "--allocations", "--noheader", "--parsable2", "--jobs", job_id, "--format", SACCT_FIELDS
        )
    except ClusterError as error:
        return JobStatus(JobState.UNKNOWN, f"{unknown}; {error}")
    if not rows.strip():
        return JobStatus(JobState.UNKNOWN, f"{unknown}; sacct: no such job")
    return _of_accounting(rows.splitlines()[-1])


SACCT_FIELDS = "State,ExitCode,NodeList"


def host_names(node_list: str) -> tuple[str, ...]:
    """Expand Slurm's short form of node names, such as node[1-3], in its order."""
    if not node_list or node_list in ("(null)", "None assigned"):
        return ()
    return tuple(call("scontrol", "show", "hostnames", node_list).split())


def _of_controller(record: str) -> JobStatus:
    """Parse `scontrol show job`. The first line ends with the job's name, which may look like a field."""
    _, _, facts = record.partition("\n")
    # Of each name the first counts: a folder's name may look like a field.
    fields = dict(reversed(FIELD.findall(facts)))
    nodes = re.search(r"^   NodeList=(\S*)", facts, re.MULTILINE)
    code = fields.get("ExitCode", "0:0")
    return _status(
        fields["JobState"],
        fields.get("Reason", ""),
        code,
        nodes[1] if nodes else "",
        fields.get("Restarts", "0"),
    )


def _of_accounting(row: str) -> JobStatus:
    state, code, nodes = row.split("|")
    return _status(state, "", code, nodes, "0")


def _status(state: str, reason: str, code: str, nodes: str, restarts: str) -> JobStatus:
    words = state.split() or [""]  # sacct says "CANCELLED by 1000"
    job_state = STATES.get(words[0], JobState.FAILED)
    reasons = [state] if job_state.is_over and job_state is not JobState.DONE else []
    reasons += [reason] if reason not in ("", "None") else []
    reasons += (
        [f"exit code {code.replace(':0', '')}"] if job_state is JobState.FAILED and code != "0:0" else []
    )
    return JobStatus(job_state, ", ".join(reasons), host_names(nodes), int(restarts))


def _surroundings(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment without the variables of a job that this process may run in: sbatch reads some of
    them."""
    return {
        name: value for name, value in environment.items() if not name.startswith("SLURM_") or name in KEPT
    }


KEPT = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT")


def _of_submission(environment: Mapping[str, str], script: str) -> dict[str, str]:
    """Returns the environment of sbatch. Its own variables override a script's directives, so only those stay that
    choose account or place, and only if the script does not."""
    directives = set(re.findall(r"^#SBATCH --([a-z-]+)[ =]", script, re.MULTILINE))
    wishes = {name for name, option in WISHES.items() if option not in directives}
    return {
        name: value
        for name, value in _surroundings(environment).items()
        if not name.startswith("SBATCH_") or name in wishes
    }


WISHES = {
    "SBATCH_ACCOUNT": "account",
    "SBATCH_CONSTRAINT": "constraint",
    "SBATCH_PARTITION": "partition",
    "SBATCH_QOS": "qos",
    "SBATCH_RESERVATION": "reservation",
    "SBATCH_TIMELIMIT": "time",
}


def _words(output: str | bytes) -> str:
    text = output.decode(errors="replace") if isinstance(output, bytes) else output
    lines = [re.sub(r"^\w+: (error|fatal): ", "", line.strip()) for line in text.splitlines() if line.strip()]
    return "; ".join(dict.fromkeys(lines))
