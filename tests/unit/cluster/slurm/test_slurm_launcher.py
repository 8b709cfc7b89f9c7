"""How an attempt is laid out over the nodes of an allocation, and which node is named when no worker can be."""

import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from moe_cluster.contract import FAILED, HEARTBEAT_FILE, PREEMPTED
from moe_cluster.errors import ClusterError, JobError
from moe_cluster.job import Attempt
from moe_cluster.launcher import Outcome
from moe_cluster.node import bad_nodes
from moe_cluster.slurm.launcher import SlurmLauncher, name_node
from moe_cluster.slurm.options import step_of
from moe_cluster.stop import StopRequest
from moe_cluster.watch.first_cause import find_first_cause

ALLOCATION = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-3]", "SLURM_CPUS_PER_TASK": "4"}


def launcher(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, per_node: str = "2") -> SlurmLauncher:
    (tmp_path / "scontrol").write_text("#!/bin/bash\necho node1; echo node2; echo node3\n")
    (tmp_path / "srun").write_text("#!/bin/bash\ntrue\n")
    for name in ("scontrol", "srun"):
        (tmp_path / name).chmod(0o755)
    # The launcher runs these programs with its own environment, so both need the stand-ins' folder.
    path = f"{tmp_path}:{os.environ['PATH']}"
    monkeypatch.setenv("PATH", path)
    return SlurmLauncher({**ALLOCATION, "PATH": path, "MOE_TRAIN_WORKERS_PER_NODE": per_node})


@pytest.mark.parametrize(
    ("workers", "nodes", "shares"),
    [(6, "node1,node2,node3", "2,2,2"), (5, "node1,node2,node3", "2,2,1"), (2, "node1", "2")],
)
def test_ranks_fill_the_nodes_in_their_order(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, workers: int, nodes: str, shares: str
) -> None:
    command = launcher(monkeypatch, tmp_path).command(Attempt(("recipe.yaml",), workers, Path("/run"), 3))
    num_nodes = 1 + nodes.count(",")
    assert f"srun --nodes={num_nodes} --ntasks={num_nodes} --ntasks-per-node=1 --cpus-per-task=4" in command
    assert f"--nodelist {nodes}" in command
    assert (
        f"-m moe_cluster.slurm.node --nodes {nodes} --workers {shares} --run-dir /run --attempt 3" in command
    )
    assert command.endswith("--module moe_train.worker -- recipe.yaml")


def test_each_attempt_meets_at_a_port_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here = launcher(monkeypatch, tmp_path)
    commands = [here.command(Attempt((), 6, Path("/run"), number)) for number in (1, 2, 2)]
    ports = [int(command.partition("--port ")[2].split()[0]) for command in commands]
    assert ports[0] != ports[1] == ports[2]
    assert all(20000 <= port < 32000 for port in ports)


def test_the_largest_number_that_there_is_room_for_is_chosen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, say: Callable[[str], None]
) -> None:
    here = launcher(monkeypatch, tmp_path)
    assert here.choose_workers(tmp_path, (2, 4, 6, 8), StopRequest(), say) == 6
    assert here.choose_workers(tmp_path, (2, 4), StopRequest(), say) == 4
    with pytest.raises(ClusterError, match="has room for 6 workers, but the run needs 8"):
        here.choose_workers(tmp_path, (8, 16), StopRequest(), say)


def test_while_a_node_does_not_answer_no_attempt_is_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here, stop, told = launcher(monkeypatch, tmp_path), StopRequest(), []
    (tmp_path / "srun").write_text("#!/bin/bash\necho 'srun: error: node2: gone' >&2; exit 1\n")

    def say(sentence: str) -> None:
        told.append(sentence)
        stop.is_requested = True

    assert here.choose_workers(tmp_path, (6,), stop, say) is None
    assert told == ["waiting for nodes, until Slurm replaces them: srun: error: node2: gone"]


def leave_out(run_dir: Path, *nodes: str) -> None:
    folder = run_dir / "attempts/1"
    folder.mkdir(parents=True)
    bad_nodes.record(folder, dict.fromkeys(nodes, "its disk is full"))


def test_a_node_that_was_found_unfit_is_left_out_where_the_run_can_do_without(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here, told = launcher(monkeypatch, tmp_path), []
    leave_out(tmp_path, "node2", "another")
    assert here.choose_workers(tmp_path, (2, 4, 6), StopRequest(), told.append) == 4
    assert told == ["node2 is excluded: its disk is full"]
    command = here.command(Attempt((), 4, tmp_path, 2))
    assert "--nodelist node1,node3" in command
    assert "--nodes node1,node3 --workers 2,2" in command


@pytest.mark.parametrize(("began", "expected"), [(False, PREEMPTED), (True, FAILED)])
def test_an_attempt_that_is_stopped_before_a_worker_began_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, say: Callable[[str], None], began: bool, expected: int
) -> None:
    here = launcher(monkeypatch, tmp_path)
    (tmp_path / "srun").write_text("#!/bin/bash\nsleep 1.5; exit 1\n")  # told at once, it dies of nothing
    (tmp_path / "attempts/1/rank-0").mkdir(parents=True)
    if began:
        beat = {"host": "node1", "pid": 1, "step": None, "time": 0.0}
        (tmp_path / "attempts/1/rank-0" / HEARTBEAT_FILE).write_text(json.dumps(beat))
    asked = StopRequest(is_requested=True)
    assert here.run(Attempt((), 2, tmp_path, 1), asked, say).exit_code == expected


def test_a_job_without_srun_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="--launcher slurm: srun is not on the PATH"):
        SlurmLauncher({**ALLOCATION, "PATH": str(tmp_path)})


def test_outside_of_a_job_the_way_in_is_named() -> None:
    with pytest.raises(JobError, match="must run inside a Slurm job; submit with"):
        SlurmLauncher({})


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (
            "Traceback\nImportError: libcudart.so.13\n",
            "Exited with exit code 1: ImportError: libcudart.so.13",
        ),
        (None, "Exited with exit code 1"),
    ],
)
def test_a_node_whose_agent_failed_is_named_with_what_was_said_there(
    tmp_path: Path, own: str | None, expected: str
) -> None:
    (tmp_path / "launcher.log").write_text(
        "srun: error: node2: task 1: Exited with exit code 1\nsrun: launch/slurm: _step_signal: Terminating\n"
    )
    if own:
        (tmp_path / "launcher-node2.log").write_text(own)
    named = name_node(Outcome(1, find_first_cause(tmp_path, [])), tmp_path)
    assert named.first_cause is not None
    assert (named.first_cause.host, named.first_cause.error) == ("node2", expected)


@pytest.fixture
def say() -> Callable[[str], None]:
    return lambda sentence: None


def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **environment: str) -> list[str]:
    """The words that start an attempt of two workers on one node, where the script exports `environment`."""
    here = launcher(monkeypatch, tmp_path)
    here.environment = {**here.environment, **environment}
    return shlex.split(here.command(Attempt(("recipe.yaml",), 2, Path("/run"), 3)))


def test_workers_start_in_the_container_that_srun_makes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = {"container-image": "nvcr.io#nvidia/pytorch", "container-mount-home": "no"}
    words = started(monkeypatch, tmp_path, MOE_TRAIN_STEP=step_of(options).text())
    agent = words.index("moe_cluster.slurm.node")
    assert words[agent - 3 : agent] == ["python3", "-P", "-m"]
    for option in ("--container-image=nvcr.io#nvidia/pytorch", "--no-container-mount-home"):
        assert words.index(option) < words.index("sh")


def test_words_before_the_command_stay_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    options = {"prefix": "apptainer exec --bind '/shared data' i.sif", "container-python": "/opt/python"}
    words = started(monkeypatch, tmp_path, MOE_TRAIN_STEP=step_of(options).text())
    prefix, agent = words.index("apptainer"), words.index("moe_cluster.slurm.node")
    assert words[prefix : prefix + 6] == ["apptainer", "exec", "--bind", "/shared data", "i.sif", "sh"]
    assert words[agent - 3] == "/opt/python"


def test_without_a_container_nothing_goes_around_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = started(monkeypatch, tmp_path)
    agent = words.index("moe_cluster.slurm.node")
    assert words[agent - 3] == sys.executable
    assert words[words.index("--wait=0") + 1] == "sh"


def test_steps_use_all_cores_of_whole_nodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    words = started(monkeypatch, tmp_path, SLURM_CPUS_PER_TASK="", SLURM_JOB_CPUS_PER_NODE="72(x2),36")
    assert "--cpus-per-task=36" in words
