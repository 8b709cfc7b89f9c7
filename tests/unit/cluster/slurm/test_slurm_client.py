"""What Slurm's commands say, in their own words: read, or passed on. Programs of the tests stand in for them."""

import stat
import time
from pathlib import Path

import pytest

from moe_cluster.errors import ClusterError
from moe_cluster.executor import JobState
from moe_cluster.slurm import client

RECORD = """\
JobId=7 JobName=small JobState=COMPLETED Restarts=9
   UserId=root(0) GroupId=root(0) MCS_label=N/A
   JobState={state} Reason={reason} Dependency=(null)
   Requeue=1 Restarts=1 BatchFlag=1 Reboot=0 ExitCode={code}
   ReqNodeList=node9 ExcNodeList=(null)
   NodeList=node[1-2]
   BatchHost=node1
   Command=(null)
   WorkDir=/shared/JobState=RUNNING NodeList=node7
"""
HOSTS = 'if [ "$2" = hostnames ]; then echo node1; echo node2; exit; fi\n'


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes a program that stands in for one of Slurm's."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def write(name: str, shell: str) -> None:
        path = tmp_path / name
        path.write_text(f"#!/bin/bash\n{shell}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    return write


@pytest.mark.parametrize(
    ("state", "reason", "code", "expected", "told"),
    [
        ("PENDING", "Resources", "0:0", JobState.PENDING, "Resources"),
        ("RUNNING", "None", "0:0", JobState.RUNNING, ""),
        ("COMPLETING", "None", "0:0", JobState.RUNNING, ""),
        ("COMPLETED", "None", "0:0", JobState.DONE, ""),
        ("CANCELLED", "None", "0:15", JobState.CANCELLED, "CANCELLED"),
        ("FAILED", "NonZeroExitCode", "1:0", JobState.FAILED, "FAILED, NonZeroExitCode, exit code 1"),
        ("TIMEOUT", "TimeLimit", "0:0", JobState.FAILED, "TIMEOUT, TimeLimit"),
        ("NODE_FAIL", "None", "0:0", JobState.FAILED, "NODE_FAIL"),
        (
            "OUT_OF_MEMORY",
            "OutOfMemory",
            "0:125",
            JobState.FAILED,
            "OUT_OF_MEMORY, OutOfMemory, exit code 0:125",
        ),
    ],
)
def test_the_state_of_a_job_is_read_from_the_controllers_record(
    programs, state: str, reason: str, code: str, expected: JobState, told: str
) -> None:
    record = RECORD.format(state=state, reason=reason, code=code)
    programs("scontrol", f"{HOSTS}cat <<'END'\n{record}END")
    status = client.job_status("7")
    assert (status.state, status.reason) == (expected, told)
    assert (status.nodes, status.restarts) == (("node1", "node2"), 1)


FORGOTTEN = f'{HOSTS}echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1'


def test_a_job_that_the_controller_forgot_is_asked_of_the_accounting(programs) -> None:
    programs("scontrol", FORGOTTEN)
    programs("sacct", "echo 'CANCELLED by 1000|0:15|node[1-2]'")
    status = client.job_status("7")
    assert (status.state, status.reason) == (JobState.CANCELLED, "CANCELLED by 1000")


@pytest.mark.parametrize(
    ("sacct", "told"),
    [
        ("echo 'Slurm accounting storage is disabled' >&2; exit 1", "Slurm accounting storage is disabled"),
        ("true", "sacct: no such job"),
    ],
)
def test_a_job_that_nobody_knows_is_unknown_and_says_who_was_asked(programs, sacct: str, told: str) -> None:
    programs("scontrol", FORGOTTEN)
    programs("sacct", sacct)
    status = client.job_status("7")
    assert status.state == JobState.UNKNOWN
    assert "Invalid job id specified" in status.reason
    assert told in status.reason


def test_a_controller_that_does_not_answer_is_named_with_the_way_out(programs) -> None:
    programs(
        "scontrol",
        "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1",
    )
    with pytest.raises(
        ClusterError, match=r"^scontrol: Slurm's controller does not answer \(.*\); check whether"
    ):
        client.job_status("7")


def test_a_refusal_is_told_in_slurms_words_once(programs) -> None:
    programs("sbatch", "for k in 1 2; do echo 'sbatch: error: Invalid account' >&2; done; exit 1")
    with pytest.raises(ClusterError, match=r"^sbatch: Slurm refused \(Invalid account\)$"):
        client.call("sbatch")


def test_a_controller_that_does_not_answer_costs_a_limited_time(programs) -> None:
    programs("squeue", "echo 'squeue: error: connecting to controller' >&2; exec sleep 60")
    began = time.monotonic()
    with pytest.raises(
        ClusterError, match=r"does not answer within 1 s: connecting to controller; check whether"
    ):
        client.call("squeue", timeout_s=1)
    assert time.monotonic() - began < 30


def test_a_machine_without_slurm_is_told_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match="sbatch: there is no such program here"):
        client.call("sbatch")


def test_the_job_that_a_command_is_called_from_says_nothing_about_the_next(
    programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "64")
    monkeypatch.setenv("SLURM_CONF", "/etc/here.conf")
    programs("sbatch", 'echo "$SLURM_NTASKS,$SLURM_CONF"')
    assert client.call("sbatch") == ",/etc/here.conf\n"


@pytest.mark.parametrize("before", ["", "echo Welcome; echo;"])
@pytest.mark.parametrize("answer", ["4711", "'4711;far'"])
def test_the_id_of_a_new_job_is_the_last_that_sbatch_says(programs, before: str, answer: str) -> None:
    programs("sbatch", f"{before} echo {answer}")
    assert client.submit("#!/bin/bash\n") == "4711"


@pytest.mark.parametrize(
    ("shell", "says"), [("true", "nothing"), ("echo Verification passed", "Verification passed")]
)
def test_an_sbatch_that_tells_no_id_is_an_error(programs, shell: str, says: str) -> None:
    programs("sbatch", shell)
    with pytest.raises(ClusterError, match=f"printed no job id \\(it printed: {says}\\); if squeue"):
        client.submit("#!/bin/bash\n")


def test_a_users_wishes_for_sbatch_hold_where_the_script_has_none(
    programs, tmp_path: Path, monkeypatch
) -> None:
    wishes = {
        "PARTITION": "mine",
        "QOS": "low",
        "ACCOUNT": "lab",
        "NO_REQUEUE": "1",
        "OUTPUT": "/tmp/x",
        "TIMELIMIT": "5",
    }
    for name, value in wishes.items():
        monkeypatch.setenv(f"SBATCH_{name}", value)
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    programs("sbatch", f"env > {tmp_path}/seen; echo 7")
    client.submit("#!/bin/bash\n#SBATCH --partition=ours\n#SBATCH --qos high\n#SBATCH --time-min=3\n")
    seen = (tmp_path / "seen").read_text().splitlines()
    assert {line for line in seen if line.startswith("SBATCH_")} == {
        "SBATCH_ACCOUNT=lab",
        "SBATCH_TIMELIMIT=5",
    }
    assert "LC_ALL=C.UTF-8" in seen
