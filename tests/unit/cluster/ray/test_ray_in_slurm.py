"""A job's own Ray: what is started, with which secret, and that all of it ends. A program stands in for srun."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from own_processes import OwnProcesses, wait_for

from moe_cluster.contract import PREEMPTED
from moe_cluster.ray.node import TOLD

ROOT = Path(__file__).parents[4]
SCONTROL = """\
#!/bin/bash
case "$*" in
*hostnames*) echo node1; echo node2 ;;
*) [ -e "${0%/*}/astray" ] && own=127.0.1.1
   echo "NodeName=node1 Arch=x86_64 NodeAddr=${own:-10.77.0.11} NodeHostName=localhost"
   echo "NodeName=node2 Arch=x86_64 NodeAddr=127.0.0.1 NodeHostName=node2" ;;
esac
"""
SRUN = f"""\
#!/bin/bash
echo "$@" >>"${{0%/*}}/calls"
echo "$RAY_AUTH_TOKEN" >>"${{0%/*}}/tokens"
[ -e "${{0%/*}}/broken" ] && {{ echo "slurmstepd: no such luck"; exit 1; }}
[ -e "${{0%/*}}/told" ] && {{ echo "{TOLD}"; exit 1; }}
[ -e "${{0%/*}}/slow" ] || echo "Ray runtime started."
[ -e "${{0%/*}}/slow" ] || echo "Ray runtime started."
[ -e "${{0%/*}}/gone" ] && exit 1
while read -rt 0.1; [ $? -gt 128 ]; do  # until its standard input ends
  [ -e "${{0%/*}}/told" ] && echo "{TOLD}"
done
"""


class Job:
    """A job on two nodes of which this machine is the first."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.processes = folder, OwnProcesses()
        (folder / "srun").write_text(SRUN)
        (folder / "scontrol").write_text(SCONTROL)
        for name in ("srun", "scontrol"):
            (folder / name).chmod(0o755)

    def start(self, code: str) -> "subprocess.Popen[str]":
        allocation = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_CPUS_PER_TASK": "3"}
        paths = {"PATH": f"{self.folder}:/usr/bin:/bin", "PYTHONPATH": str(ROOT / "cluster")}
        inside = ["-m", "moe_cluster.ray.in_slurm", str(self.folder), sys.executable, "-c", code]
        return subprocess.Popen(
            [sys.executable, *inside],
            env={**os.environ, **allocation, **paths, **self.processes.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def test_the_command_finds_its_ray_and_all_of_it_ends_with_it(job: Job, tmp_path: Path) -> None:
    process = job.start("import os, sys; print(os.environ['RAY_ADDRESS']); sys.exit(7)")
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 7, errors
    head, others = (tmp_path / "calls").read_text().splitlines()
    address = output.strip()
    node = f"{sys.executable} -P -m moe_cluster.ray.node moe-train-7 {sys.executable} -P -m ray.scripts"
    assert f"--nodelist=node1 --cpus-per-task=3 --kill-on-bad-exit=1 {node}" in head
    assert f"start --block --head --node-ip-address=10.77.0.11 --port={address.partition(':')[2]}" in head
    assert f"start --block --address={address} --num-cpus=3" in others
    assert job.processes.living() == []


def test_the_token_is_one_of_this_job_and_in_no_command_line(job: Job, tmp_path: Path) -> None:
    for _ in range(2):
        job.start("pass").communicate(timeout=60)
    tokens = (tmp_path / "tokens").read_text().split()
    assert [len(token) for token in tokens] == [64] * 4
    assert tokens[0] == tokens[1] != tokens[2] == tokens[3]
    assert not any(token in (tmp_path / "calls").read_text() for token in tokens)


def test_a_signal_goes_to_the_command_whose_exit_code_counts(job: Job, tmp_path: Path) -> None:
    code = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))\n"
        f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\n"
        "time.sleep(60)"
    )
    process = job.start(code)
    wait_for((tmp_path / "ready").exists)
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=60)
    assert process.returncode == 75
    assert job.processes.living() == []


LATE = """\
import pathlib, signal, sys, time
pathlib.Path({file!r}).touch()
time.sleep(0.5)
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, _: sys.exit(number))
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_that_comes_while_the_command_starts_reaches_it(
    job: Job, tmp_path: Path, number: int
) -> None:
    process = job.start(LATE.format(file=str(tmp_path / "ready")))
    wait_for((tmp_path / "ready").exists)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == number
    assert job.processes.living() == []


def test_what_slurm_tells_the_nodes_alone_reaches_the_command(job: Job, tmp_path: Path) -> None:
    process = job.start(LATE.format(file=str(tmp_path / "told")))
    process.communicate(timeout=60)
    assert process.returncode == signal.SIGTERM
    assert job.processes.living() == []


def test_a_signal_that_comes_while_ray_starts_ends_the_job_as_one_that_goes_on(
    job: Job, tmp_path: Path
) -> None:
    (tmp_path / "slow").touch()
    process = job.start("raise AssertionError")
    wait_for((tmp_path / "7-ray-head.log").exists)
    process.send_signal(signal.SIGUSR1)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (PREEMPTED, "")
    assert job.processes.living() == []


def test_a_job_whose_steps_do_not_start_since_it_is_to_end_goes_on(job: Job, tmp_path: Path) -> None:
    (tmp_path / "told").touch()
    process = job.start("raise AssertionError")
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (PREEMPTED, "")


def test_a_ray_that_does_not_start_is_one_message_with_its_log(job: Job, tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    began = time.monotonic()
    process = job.start("pass")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    log = tmp_path / "7-ray-head.log"
    assert errors == f"moe-train: error: Ray on node1 exited at start; see {log}\n"
    assert "no such luck" in log.read_text()
    assert time.monotonic() - began < 30


def test_a_ray_that_is_gone_for_good_ends_the_job_with_its_log(job: Job, tmp_path: Path) -> None:
    (tmp_path / "gone").touch()
    process = job.start("import time; time.sleep(60)")
    _, errors = process.communicate(timeout=50)
    assert process.returncode == 1
    assert (
        errors == f"moe-train: error: a Ray process of this job exited; see {tmp_path / '7-ray-head.log'}\n"
    )
    assert job.processes.living() == []


def test_a_batch_node_that_the_others_would_not_find_is_one_message(job: Job, tmp_path: Path) -> None:
    (tmp_path / "astray").touch()
    process = job.start("raise AssertionError")
    _, errors = process.communicate(timeout=50)
    assert process.returncode == 1
    assert errors.startswith("moe-train: error: other nodes cannot reach this one: 127.0.1.1, ")
    assert errors.count("\n") == 1
    assert not (tmp_path / "calls").exists()
