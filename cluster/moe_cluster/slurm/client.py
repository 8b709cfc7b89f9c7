"""Slurm's own commands, each within a time limit, and its words where one of them fails.

Job state comes from the controller (`scontrol`); only of a job that it has forgotten is the accounting (`sacct`)
asked, which many clusters do not have. What the commands print is read in their machine-readable forms only.
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
# Slurm's base states and flags, without those that end a job badly: all others are failures.
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
    """The id of a job that Slurm has made of a script. Raises ClusterError as `call` does, and if it tells no id."""
    said = call(
        "sbatch", "--parsable", text=script, environment=with_own_code(_of_submission(os.environ, script))
    )
    # A site's own sbatch may say more before. On a federation the cluster's name stands behind the id.
    job_id = (said.splitlines() or [""])[-1].strip().partition(";")[0]
    if not job_id.isdecimal():
        raise ClusterError(
            f"sbatch ends well and tells no job's id (it says: {_words(said) or 'nothing'}); see whether squeue --me "
            "shows a new job, and scancel it: no command of ours knows it"
        )
    return job_id


def call(
    program: str,
    *arguments: str,
    text: str = "",
    timeout_s: float = TIMEOUT_S,
    environment: Mapping[str, str] | None = None,
) -> str:
    """What a Slurm command prints. Raises ClusterError with its own words if it fails or does not answer in time.

    It runs in `environment`, by default this process's own less what describes the job that we may run in.
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
        raise ClusterError(f"{program}: cannot be run ({error.strerror})") from None
    except subprocess.TimeoutExpired as error:
        said = _words(error.stderr or b"")
        raise ClusterError(
            f"{program}: Slurm does not answer within {timeout_s:.0f} s{said and ': '}{said}; "
            "see whether its controller can be reached (scontrol ping)"
        ) from None
    if done.returncode != 0:
        raise ClusterError(
            f"Slurm refuses: {_words(done.stderr) or f'{program} ended with {done.returncode}'}"
        )
    return done.stdout


def job_status(job_id: str) -> JobStatus:
    """What the controller knows of a job, or else the accounting. Raises ClusterError if the controller cannot be
    asked."""
    try:
        return _of_controller(call("scontrol", "show", "job", job_id))
    except ClusterError as error:
        if UNKNOWN_JOB not in str(error):
            raise
        forgotten = str(error)
    try:
        rows = call(
            "sacct", "--allocations", "--noheader", "--parsable2", "--jobs", job_id, "--format", SACCT_FIELDS
        )
    except ClusterError as error:
        return JobStatus(JobState.UNKNOWN, f"scontrol: {forgotten}; sacct: {error}")
    if not rows.strip():
        return JobStatus(JobState.UNKNOWN, f"scontrol: {forgotten}; sacct: knows no such job")
    return _of_accounting(rows.splitlines()[-1])


SACCT_FIELDS = "State,ExitCode,NodeList"


def host_names(node_list: str) -> tuple[str, ...]:
    """The nodes that Slurm writes in short, such as node[1-3], in its order."""
    if not node_list or node_list in ("(null)", "None assigned"):
        return ()
    return tuple(call("scontrol", "show", "hostnames", node_list).split())


def _of_controller(record: str) -> JobStatus:
    """Of `scontrol show job`: a line begins with a field of Slurm's, the job's name stands at the end of the
    first."""
    _, _, facts = record.partition("\n")
    fields = dict(
        reversed(FIELD.findall(facts))
    )  # the first of a name: a folder's name may hold the like of one
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
    known = STATES.get(words[0], JobState.FAILED)
    told = [state] if known.is_over and known is not JobState.DONE else []
    told += [reason] if reason not in ("", "None") else []
    told += [f"exit code {code.replace(':0', '')}"] if known is JobState.FAILED and code != "0:0" else []
    return JobStatus(known, ", ".join(told), host_names(nodes), int(restarts))


def _surroundings(environment: Mapping[str, str]) -> dict[str, str]:
    """Without what the job describes from which we may be called: sbatch would take it for wishes."""
    return {
        name: value for name, value in environment.items() if not name.startswith("SLURM_") or name in KEPT
    }


KEPT = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT")


def _of_submission(environment: Mapping[str, str], script: str) -> dict[str, str]:
    """Of sbatch's own variables only those that say where a job runs and who pays, where the script leaves that open:
    they win over a script's directives, and are the job's environment too."""
    said = set(re.findall(r"^#SBATCH --([a-z-]+)[ =]", script, re.MULTILINE))
    wishes = {name for name, option in WISHES.items() if option not in said}
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


def _words(told: str | bytes) -> str:
    text = told.decode(errors="replace") if isinstance(told, bytes) else told
    lines = [re.sub(r"^\w+: (error|fatal): ", "", line.strip()) for line in text.splitlines() if line.strip()]
    return "; ".join(dict.fromkeys(lines))
