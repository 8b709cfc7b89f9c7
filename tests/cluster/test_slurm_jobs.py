"""Runs on a real Slurm of three nodes: what is promised of an undisturbed one, and of one that a cluster treats
badly.

Each fault is a real one, done to real processes; a run that met one ends with the very numbers of one that did not.
"""

import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm_cluster
from cluster_jobs import (
    CALM,
    ENDLESS,
    FULL_DISK,
    PATIENCE_S,
    SHARED_WORK,
    STEPS,
    TWO_NODES,
    assert_outlives_full_disk,
    assert_sweeps,
    slowed,
)
from conftest import skip_or_fail
from full_disks import SharedDisk, shared_disk
from own_processes import wait_for
from scenarios import Scenarios
from slurm_cluster import SlurmCluster
from slurm_jobs import SlurmRun, SlurmTerminal

pytestmark = pytest.mark.cluster
INTRODUCTION = """\
`make cluster` writes this section (tests/cluster/test_slurm_jobs.py): a real Slurm 22.05 of three nodes on one
machine of two busy cores, a run of two workers on two nodes with an expert group across both, faults inflicted on
real processes. "Back at work" is the time from the fault to the first step after it, most of which is the start of
Python and torch. SlurmdTimeout is 6 s here, where clusters have 300 s. All numbers of these runs are bitwise those
of an undisturbed run, unless a row says otherwise.
"""
RAY_INSIDE = ("--option", "launcher=ray", "--option", "gres=gpu:0")
URGENT = (
    "sbatch",
    "--partition=urgent",
    "--nodes=3",
    "--exclusive",
    "--output=/dev/null",
    "--wrap=sleep 2",
)
"""A job that takes the nodes of all others."""
GOES_ON = "the run resumes by itself from its last checkpoint"


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedDisk]:
    if reason := slurm_cluster.missing():
        skip_or_fail(reason)
    with shared_disk(tmp_path_factory.mktemp("disk"), mebibytes=16) as disk:
        yield disk


@pytest.fixture(scope="module")
def cluster(disk: SharedDisk) -> Iterator[SlurmCluster]:
    with SlurmCluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def terminal(cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> SlurmTerminal:
    return SlurmTerminal(cluster, tmp_path_factory.mktemp("slurm"))


@pytest.fixture(scope="module")
def undisturbed(terminal: SlurmTerminal) -> SlurmRun:
    """A run on two nodes, one expert in two on each, that nothing happens to."""
    run = terminal.submit("undisturbed", *TWO_NODES)
    run.wait_for_job("COMPLETED")
    return run


@pytest.fixture(scope="module")
def scenarios() -> Scenarios:
    return Scenarios("slurm", INTRODUCTION)


@pytest.fixture(autouse=True)
def _repaired(cluster: SlurmCluster) -> Iterator[None]:
    yield
    cluster.repair()


def back_at_work(run: SlurmRun, began: float, attempt: int = 2) -> float:
    """Wait for the first step of an attempt; returns the seconds since `began`."""
    run.wait_for_attempt(attempt)
    return time.monotonic() - began


def test_representative_a_run_on_two_nodes_ends_well(undisturbed: SlurmRun, scenarios: Scenarios) -> None:
    assert undisturbed.attempts == 1
    assert {undisturbed.status()["step"], undisturbed.step} == {STEPS}
    scenarios.add("nothing", "one attempt, exit code 0, job COMPLETED", "as promised")


def test_representative_a_killed_worker_is_named_and_its_run_goes_on_where_it_is(
    terminal: SlurmTerminal, undisturbed: SlurmRun, scenarios: Scenarios
) -> None:
    run = terminal.submit("worker-killed", *TWO_NODES)
    run.wait_for_step(20)
    host, pid = run.worker(rank=1)
    os.kill(pid, signal.SIGKILL)
    recovery_s = back_at_work(run, time.monotonic())
    assert "Restarts=0 " in run.wait_for_job("COMPLETED")
    assert (
        f"rank 1 on {host} failed " in run.output
    )  # a heartbeat comes once a second, and may know of no step
    assert "killed by SIGKILL" in run.output
    assert run.attempts == 2
    assert run.numbers() == undisturbed.numbers()
    seen = "rank, node, step and signal named; second attempt in the same allocation"
    scenarios.add("a worker is killed", f"named; {GOES_ON}", seen, recovery_s)


@pytest.mark.parametrize("how", SHARED_WORK)
def test_a_killed_worker_of_any_engine_and_layout_comes_back(
    terminal: SlurmTerminal, scenarios: Scenarios, how: str
) -> None:
    run = terminal.submit(f"killed-{how.partition('=')[0]}", *TWO_NODES, *SHARED_WORK[how], *CALM)
    run.wait_for_step(20)
    host, pid = run.worker(rank=1)
    os.kill(pid, signal.SIGKILL)
    recovery_s = back_at_work(run, time.monotonic())
    assert "Restarts=0 " in run.wait_for_job("COMPLETED")
    assert f"rank 1 on {host} failed " in run.output
    assert (run.attempts, run.step) == (2, STEPS)
    run.assert_resumed(attempt=2)
    run.assert_like_one_worker(*CALM)
    seen = "named, second attempt in the same allocation; the losses of one worker, within 1e-5"
    scenarios.add(f"a worker is killed, `{how}`", f"named; {GOES_ON}", seen, recovery_s)


def test_a_slow_worker_is_named_once_and_its_run_goes_on(
    terminal: SlurmTerminal, undisturbed: SlurmRun, scenarios: Scenarios
) -> None:
    run = terminal.submit("slow-worker", *TWO_NODES, *ENDLESS, "job.hang_s=10")
    run.wait_for_step(20)
    host, pid = run.worker(rank=1)
    began = time.monotonic()
    with slowed(pid):
        wait_for(lambda: "is slow" in run.output, every_s=0.2, timeout_s=PATIENCE_S)
    told_s = time.monotonic() - began
    assert f"rank 1 on {host} is slow" in run.output
    assert f"rank 1 on {host} is slow" in run.status()["said"]
    terminal("cancel", str(run.folder))
    run.wait_for_job("CANCELLED")
    assert run.output.count("is slow") == 1
    assert run.attempts == 1
    run.assert_goes_on_as(undisturbed)
    seen = f"named after {told_s:.0f} s with job.hang_s=10, in the job's output and in `status`; ends nothing"
    scenarios.add("a worker is slow", "named once; nothing else", seen)


def commands_on(cluster: SlurmCluster) -> dict[int, str]:
    """Command lines of all processes on all nodes."""
    return {pid: line for name in cluster.names for pid, line in cluster.processes(name).items()}


def folders_of_ray(commands: dict[int, str]) -> set[Path]:
    """The temporary folders of all Rays that run; there is one for each node."""
    return {Path(name) for name in re.findall(r"/tmp/moe-train-\d+-\w+", str(commands))}


def assert_no_ray_is_left(cluster: SlurmCluster, folders: set[Path]) -> None:
    assert not re.search(r"raylet|gcs_server|ray::|ray\.scripts|moe_cluster", str(commands_on(cluster)))
    assert not [folder for folder in folders if folder.exists()]


def test_a_ray_inside_of_a_job_trains_the_same_and_leaves_nothing_and_shows_no_token(
    terminal: SlurmTerminal, undisturbed: SlurmRun, scenarios: Scenarios
) -> None:
    run = terminal.submit("ray-inside", *TWO_NODES, *RAY_INSIDE)
    run.wait_for_step(20)
    commands = commands_on(terminal.cluster)
    folders = folders_of_ray(commands)
    assert [folder.stat().st_mode & 0o777 for folder in folders] == [0o700, 0o700]
    raylet = next(each for each, command in commands.items() if "raylet/raylet" in command)
    environment = Path(f"/proc/{raylet}/environ").read_bytes().decode()
    token = environment.partition("RAY_AUTH_TOKEN=")[2].partition("\0")[0]
    assert len(token) == 64
    assert not [command for command in commands.values() if token in command]
    run.wait_for_job("COMPLETED")
    assert run.attempts == 1
    assert run.numbers() == undisturbed.numbers()
    assert_no_ray_is_left(terminal.cluster, folders)
    for name in terminal.cluster.names:
        assert terminal.cluster.inside(name, "find", "/tmp/ray", "-mindepth", "1") == ""
    for path in run.folder.rglob("*"):
        assert path.is_dir() or token.encode() not in path.read_bytes()
    seen = "as promised, with the numbers of a run without Ray; it left no process and no file on the nodes"
    promised = "one attempt, exit code 0, job COMPLETED"
    scenarios.add("nothing, with a Ray inside the job", promised, seen)


def test_a_ray_inside_of_a_job_goes_on_without_a_worker_and_has_a_lost_node_again(
    terminal: SlurmTerminal, undisturbed: SlurmRun, scenarios: Scenarios
) -> None:
    run = terminal.submit("ray-inside-killed", *TWO_NODES, *RAY_INSIDE)
    run.wait_for_step(20)
    host, pid = run.worker(rank=1)
    os.kill(pid, signal.SIGKILL)
    worker_s = back_at_work(run, time.monotonic())
    batch = re.search(r"BatchHost=(\S+)", run.job())
    assert batch
    lost = next(name for name in run.status()["nodes"] if name != batch[1])
    commands = terminal.cluster.processes(lost)
    os.kill(next(each for each, command in commands.items() if "raylet/raylet" in command), signal.SIGKILL)
    raylet_s = back_at_work(run, time.monotonic(), attempt=3)
    assert "Restarts=0 " in run.wait_for_job("COMPLETED")
    assert (
        f"rank 1 on {host} failed " in run.output
    )  # a heartbeat comes once a second, and may know of no step
    assert run.attempts == 3
    assert run.numbers() == undisturbed.numbers()
    seen = "rank and node named, second attempt in the same Ray"
    scenarios.add("a worker of a Ray inside a job is killed", f"named; {GOES_ON}", seen, worker_s)
    seen = "its Ray lost the node and got it back: next attempt in the same job, with as many workers"
    scenarios.add("a raylet of a Ray inside a job is killed", GOES_ON, seen, raylet_s)


def test_a_ray_inside_of_a_job_saves_when_others_take_its_nodes_and_when_it_is_cancelled(
    terminal: SlurmTerminal, undisturbed: SlurmRun, scenarios: Scenarios
) -> None:
    run = terminal.submit("ray-inside-told", *TWO_NODES, *ENDLESS, *RAY_INSIDE)
    wait_for((run.folder / f"jobs/{run.job_id}-ray-head.log").exists, timeout_s=60)
    terminal.cluster.call("scancel", "--batch", "--signal=USR1", run.job_id)
    wait_for(lambda: "Restarts=1 " in run.job(), timeout_s=60)
    run.wait_for_step(20)
    terminal.cluster.call(*URGENT)
    recovery_s = back_at_work(run, time.monotonic())
    assert "Restarts=2 " in run.job()
    terminal("cancel", str(run.folder))
    run.wait_for_job("CANCELLED")
    assert_no_ray_is_left(
        terminal.cluster, set()
    )  # on a busy machine KillWait may be over before folders are gone
    wait_for(lambda: run.output.count("moe-train: stopped and saved") == 2, timeout_s=20)
    assert run.attempts == 2
    assert run.repeated_steps() == []
    run.assert_goes_on_as(undisturbed)
    seen = "no step repeated; also requeued when told to stop while Ray started"
    promised = "saves, and resumes when there is room; saves when it is cancelled"
    scenarios.add("an urgent job takes the nodes of a Ray inside a job", promised, seen, recovery_s)


def test_a_ray_inside_of_a_job_that_loses_a_node_is_made_anew_on_others(
    terminal: SlurmTerminal, undisturbed: SlurmRun, scenarios: Scenarios
) -> None:
    run = terminal.submit("ray-inside-lost", *TWO_NODES, *RAY_INSIDE)
    run.wait_for_step(20)
    batch = re.search(r"BatchHost=(\S+)", run.job())
    assert batch
    lost = next(name for name in run.status()["nodes"] if name != batch[1])
    (abandoned,) = folders_of_ray(terminal.cluster.processes(lost))
    terminal.cluster.crash(lost)
    recovery_s = back_at_work(run, time.monotonic())
    assert "Restarts=1 " in run.wait_for_job("COMPLETED")
    assert lost not in run.status()["nodes"]
    assert run.attempts == 2
    assert run.numbers() == undisturbed.numbers()
    shutil.rmtree(abandoned)  # of a node that is no more; these share their disk
    seen = "requeued by Slurm, done in a new Ray on the others"
    scenarios.add("a node of a Ray inside a job dies", f"{GOES_ON}, on other nodes", seen, recovery_s)


def test_a_worker_that_hangs_is_named_and_its_run_goes_on(
    terminal: SlurmTerminal, undisturbed: SlurmRun, scenarios: Scenarios
) -> None:
    run = terminal.submit("hang", *TWO_NODES, "job.hang_s=10")
    run.wait_for_step(20)
    host, pid = run.worker(rank=1)
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    wait_for(lambda: f"rank 1 on {host} " in run.output, every_s=0.1)
    named_s = time.monotonic() - began
    recovery_s = back_at_work(run, began)
    assert "Restarts=0 " in run.wait_for_job("COMPLETED")
    assert run.attempts == 2
    assert run.numbers() == undisturbed.numbers()
    seen = f"rank and node named after {named_s:.0f} s; second attempt in the same allocation"
    scenarios.add("a worker hangs (job.hang_s=10)", f"named; {GOES_ON}", seen, recovery_s)


@pytest.mark.parametrize("rank", [1, 0])
def test_a_run_outlives_any_of_its_nodes(
    terminal: SlurmTerminal, undisturbed: SlurmRun, scenarios: Scenarios, rank: int
) -> None:
    run = terminal.submit(f"node-of-{rank}-killed", *TWO_NODES)
    run.wait_for_step(20)
    host, _ = run.worker(rank)
    terminal.cluster.crash(host)
    recovery_s = back_at_work(run, time.monotonic())
    record = run.wait_for_job("COMPLETED")
    assert "Restarts=1 " in record
    assert host not in run.status()["nodes"]
    assert run.attempts == 2
    assert run.numbers() == undisturbed.numbers()
    which = "the batch node dies" if rank == 0 else "a node dies"
    scenarios.add(which, f"{GOES_ON}, on other nodes", "requeued by Slurm, done on the others", recovery_s)


def test_a_job_that_takes_its_nodes_down_before_it_saves_is_not_queued_for_ever(
    terminal: SlurmTerminal, scenarios: Scenarios
) -> None:
    run = terminal.submit("takes-nodes-down", *TWO_NODES, "steps=100000", "checkpoint.every=100000")
    for attempt in range(1, 5):
        run.wait_for_attempt(attempt)
        host, _ = run.worker(attempt % 2, attempt)  # in turn a node and the batch node
        terminal.cluster.crash(host)
        wait_for(lambda restarts=attempt: f"Restarts={restarts} " in run.job(), every_s=0.5, timeout_s=120)
        terminal.cluster.start_node(host)
    assert "Restarts=4 " in run.wait_for_job("FAILED")
    assert run.attempts == 4
    assert "(attempts 1, 2, 3, 4); no further attempt is made" in run.output
    scenarios.add(
        "a job takes a node down in each attempt, before it saves anything",
        "it ends as failed after four",
        "as promised; the message says why, and how to continue",
    )


def test_a_run_goes_on_with_fewer_nodes_where_there_are_no_more(
    terminal: SlurmTerminal, undisturbed: SlurmRun, scenarios: Scenarios
) -> None:
    run = terminal.submit("fewer-nodes", "--nodes", "1:2")
    run.wait_for_step(20)
    assert run.workers_of(1) == 2
    host, _ = run.worker(rank=1)
    for name in {*terminal.cluster.names[1:], host} - {run.worker(rank=0)[0]}:
        terminal.cluster.crash(name)
    recovery_s = back_at_work(run, time.monotonic())
    run.wait_for_job("COMPLETED")
    assert (run.attempts, run.workers_of(2)) == (2, 1)
    last = (STEPS, "validation_loss")
    assert run.numbers()[last] == pytest.approx(undisturbed.numbers()[last], rel=1e-3)
    seen = "requeued by Slurm, done by one worker instead of two; the last loss the same to 0.1%"
    scenarios.add("two of three nodes die (`--nodes 1:2`)", f"{GOES_ON}, on fewer nodes", seen, recovery_s)


def test_a_run_outlives_the_daemon_of_its_node(
    terminal: SlurmTerminal, undisturbed: SlurmRun, scenarios: Scenarios
) -> None:
    run = terminal.submit("daemon-killed", *TWO_NODES, *ENDLESS)
    run.wait_for_step(20)
    host, _ = run.worker(rank=1)
    terminal.cluster.stop_daemon(host)
    recovery_s = back_at_work(run, time.monotonic())
    assert "Restarts=1 " in run.job()
    terminal("cancel", str(run.folder))
    run.wait_for_job("CANCELLED")
    assert run.attempts == 2
    run.assert_goes_on_as(undisturbed)
    seen = "kept training until Slurm noticed, then requeued; the same numbers until it was cancelled"
    scenarios.add("slurmd is killed", GOES_ON, seen, recovery_s)


def test_a_requeue_by_hand_goes_on_with_nothing_made_twice(
    terminal: SlurmTerminal, undisturbed: SlurmRun, scenarios: Scenarios
) -> None:
    run = terminal.submit("requeued", *TWO_NODES)
    wait_for((run.folder / "attempts/1/launcher.log").exists, timeout_s=60)
    terminal.cluster.call("scancel", "--batch", "--signal=USR1", run.job_id)  # its agents only start
    run.wait_for_step(20)
    assert "Restarts=1 " in run.job()
    terminal.cluster.call("scontrol", "requeue", run.job_id)
    recovery_s = back_at_work(run, time.monotonic(), attempt=3)
    assert "Restarts=2 " in run.wait_for_job("COMPLETED")
    assert run.attempts == 3
    assert run.repeated_steps() == []
    assert run.numbers() == undisturbed.numbers()
    seen = "no step repeated; also requeued when told to stop while starting"
    scenarios.add("`scontrol requeue`", "saves, and resumes from there", seen, recovery_s)


def test_a_preempted_run_saves_and_goes_on_when_there_is_room(
    terminal: SlurmTerminal, undisturbed: SlurmRun, scenarios: Scenarios
) -> None:
    run = terminal.submit("preempted", *TWO_NODES)
    run.wait_for_step(20)
    terminal.cluster.call(*URGENT)
    recovery_s = back_at_work(run, time.monotonic())
    assert "Restarts=1 " in run.wait_for_job("COMPLETED")
    assert run.attempts == 2
    assert run.repeated_steps() == []
    assert run.numbers() == undisturbed.numbers()
    seen = "no step repeated; not counted as a failure"
    scenarios.add("an urgent job takes its nodes", "saves, and resumes when there is room", seen, recovery_s)


def test_a_run_that_is_longer_than_its_time_saves_in_time_and_is_queued_again(
    terminal: SlurmTerminal, undisturbed: SlurmRun, scenarios: Scenarios
) -> None:
    limits = ("--time-limit", "1", "--option", "lead_s=45")
    run = terminal.submit("time-limit", *TWO_NODES, *ENDLESS, *limits)
    wait_for(lambda: "queued again" in run.output, every_s=0.1, timeout_s=180)
    recovery_s = back_at_work(run, time.monotonic())
    terminal("cancel", str(run.folder))
    run.wait_for_job("CANCELLED")
    assert "the time limit is near" in run.output
    assert run.repeated_steps() == []
    run.assert_goes_on_as(undisturbed)
    seen = "saved before it, requeued, no step repeated; cancelled then"
    scenarios.add("the time limit comes", "saves before it, and resumes", seen, recovery_s)


def test_a_cancelled_run_has_saved_and_can_be_resumed(
    terminal: SlurmTerminal, undisturbed: SlurmRun, scenarios: Scenarios
) -> None:
    run = terminal.submit("cancelled", *TWO_NODES)
    run.wait_for_step(20)
    terminal("cancel", str(run.folder))
    run.wait_for_job("CANCELLED")
    wait_for(lambda: "stopped and saved" in run.output, timeout_s=20)
    assert run.status()["state"] == "stopped"
    run.resume()
    run.wait_for_job("COMPLETED")
    assert run.repeated_steps() == []
    assert run.numbers() == undisturbed.numbers()
    assert run.attempts == 2
    scenarios.add("`scancel`, `moe-train cancel`", "saves, and ends; `resume` continues", "no step repeated")


def test_a_short_cut_of_the_network_is_waited_out(
    terminal: SlurmTerminal, undisturbed: SlurmRun, scenarios: Scenarios
) -> None:
    run = terminal.submit("cut-and-healed", *TWO_NODES)
    run.wait_for_step(20)
    host, _ = run.worker(rank=1)
    terminal.cluster.cut_off(host)
    time.sleep(2)
    terminal.cluster.heal(host)
    assert "Restarts=0 " in run.wait_for_job("COMPLETED")
    assert run.attempts == 1
    assert run.numbers() == undisturbed.numbers()
    scenarios.add("a node is off the network for 2 s", "the run waits", "one attempt")


@pytest.mark.parametrize("rank", [1, 0])
def test_a_run_leaves_a_node_that_is_cut_off_and_what_lives_there_spoils_nothing(
    terminal: SlurmTerminal, undisturbed: SlurmRun, scenarios: Scenarios, rank: int
) -> None:
    run = terminal.submit(f"cut-off-{rank}", *TWO_NODES)
    run.wait_for_step(20)
    host, _ = run.worker(rank)
    terminal.cluster.cut_off(host)
    recovery_s = back_at_work(run, time.monotonic())
    terminal.cluster.heal(host)
    assert "Restarts=1 " in run.wait_for_job("COMPLETED")
    assert run.attempts == 2
    assert run.numbers() == undisturbed.numbers()
    which = "the batch node is cut off" if rank == 0 else "a node is cut off"
    seen = "requeued by Slurm; the old attempt, alive beside the new one for a while, wrote nothing"
    scenarios.add(which, f"{GOES_ON}, on other nodes", seen, recovery_s)


@pytest.fixture
def unfit(cluster: SlurmCluster) -> Iterator[str]:
    """A node whose shared memory is full, of which Slurm knows nothing."""
    cluster.inside("node2", "bash", "-c", "cat /dev/zero >/dev/shm/fill || true")
    yield "node2"
    cluster.inside("node2", "rm", "/dev/shm/fill")


def test_a_run_that_needs_another_node_than_an_unfit_one_is_queued_again_without_it(
    terminal: SlurmTerminal, undisturbed: SlurmRun, scenarios: Scenarios, unfit: str
) -> None:
    run = terminal.submit("unfit", *TWO_NODES)
    began = time.monotonic()
    recovery_s = back_at_work(run, began)
    record = run.wait_for_job("COMPLETED")
    assert f"ExcNodeList={unfit}" in record
    assert "Restarts=1 " in record
    assert f"{unfit} is excluded: /dev/shm" in run.output
    assert run.attempts == 2
    assert run.numbers() == undisturbed.numbers()
    seen = "named by the preflight; requeued with it excluded, done on the others"
    scenarios.add("a node is unfit: its /dev/shm is full", f"{GOES_ON}, on other nodes", seen, recovery_s)


def test_a_run_that_can_do_without_an_unfit_node_goes_on_at_once(
    terminal: SlurmTerminal, undisturbed: SlurmRun, scenarios: Scenarios, unfit: str
) -> None:
    run = terminal.submit("unfit-fewer", "--nodes", "1:2")
    began = time.monotonic()
    recovery_s = back_at_work(run, began)
    record = run.wait_for_job("COMPLETED")
    assert "Restarts=0 " in record
    assert f"{unfit} is excluded: /dev/shm" in run.output
    assert [run.workers_of(attempt) for attempt in (1, 2)] == [2, 1]
    last = (STEPS, "validation_loss")
    assert run.numbers()[last] == pytest.approx(undisturbed.numbers()[last], rel=1e-3)
    seen = "left out in the next attempt, done by one worker instead of two"
    scenarios.add("the same (`--nodes 1:2`)", f"{GOES_ON}, without it", seen, recovery_s)


def test_a_full_disk_of_a_node_is_named_with_the_node(
    terminal: SlurmTerminal, undisturbed: SlurmRun, scenarios: Scenarios
) -> None:
    scratch = str(terminal.cluster.scratch)
    terminal.cluster.inside(
        "node2", "dd", "if=/dev/zero", f"of={scratch}/fill", "bs=1M", "count=15", "status=none"
    )
    terminal.cluster.inside("node2", "bash", "-c", f"cat /dev/zero >{scratch}/rest || true")
    run = terminal.submit("full-disk", *TWO_NODES, "--max-restarts", "0", MOE_TRAIN_CACHE=scratch)
    run.wait_for_job("FAILED")
    assert re.search(r"on node2 (failed )?before the first step", run.output), run.output
    assert "No space left on device" in run.output
    terminal.cluster.inside("node2", "bash", "-c", f"rm -r {scratch}/*")
    run.resume()
    run.wait_for_job("COMPLETED")
    assert run.numbers() == undisturbed.numbers()
    assert run.attempts == 2
    seen = "node2 and `No space left on device`; done by `resume` once there was space"
    scenarios.add("the disk of one node is full", "a clear end that names the node", seen)


def test_a_full_disk_under_the_run_ends_it_and_loses_nothing(
    disk: SharedDisk, terminal: SlurmTerminal, undisturbed: SlurmRun, scenarios: Scenarios
) -> None:
    run = terminal.submit("no-room", *TWO_NODES, runs=disk.folder)
    fails, finishes = (lambda: run.wait_for_job("FAILED")), (lambda: run.wait_for_job("COMPLETED"))
    assert_outlives_full_disk(run, disk, undisturbed, fails, finishes)
    scenarios.add(*FULL_DISK)


def test_a_sweep_runs_to_its_end_and_prints_its_table(
    terminal: SlurmTerminal, undisturbed: SlurmRun, scenarios: Scenarios
) -> None:
    assert_sweeps(terminal, undisturbed)
    seen = "an array job; one of the two runs equals the undisturbed one"
    scenarios.add("`sweep` of two seeds, `--wait`", "both end, and a table has their results", seen)


def test_a_damaged_newest_checkpoint_is_passed_over(
    terminal: SlurmTerminal, undisturbed: SlurmRun, scenarios: Scenarios
) -> None:
    run = terminal.submit("damaged", *TWO_NODES)
    run.wait_for_step(42)
    newest = run.damage_newest_checkpoint()
    recovery_s = back_at_work(run, time.monotonic())
    run.wait_for_job("COMPLETED")
    assert run.attempts == 2
    assert run.numbers() == undisturbed.numbers()
    said = (run.folder / "attempts/2/rank-0/log.txt").read_text()
    assert f"{newest.name}" in said
    assert f"attempt 2, from step {int(newest.name.removeprefix('step_')) - 10}" in run.output
    seen = "the damaged file named, the one before used"
    scenarios.add(
        "the newest checkpoint is damaged", "the one before it is used, and the log says so", seen, recovery_s
    )


def test_a_worker_that_cannot_start_is_named_with_its_node(
    terminal: SlurmTerminal, scenarios: Scenarios
) -> None:
    scratch = terminal.cluster.scratch
    broken = 'raise ImportError("libcudart.so.13: cannot open shared object file")'
    terminal.cluster.inside("node2", "bash", "-c", f"echo '{broken}' >{scratch}/torch.py")
    run = terminal.submit("cannot-start", *TWO_NODES, "--max-restarts", "0", first_on_path=str(scratch))
    began = time.monotonic()
    run.wait_for_job("FAILED")
    assert "on node2 failed before the first step" in run.output
    assert "libcudart.so.13: cannot open shared object file" in run.output
    seen = f"node2 and the ImportError, {time.monotonic() - began:.0f} s after the submission"
    scenarios.add("a worker cannot start on one node", "a clear end that names the node; no hang", seen)


def test_two_jobs_never_train_in_one_folder(
    terminal: SlurmTerminal, undisturbed: SlurmRun, scenarios: Scenarios
) -> None:
    run = terminal.submit("twice", *TWO_NODES)
    words = ("small.yaml", "--cluster", "slurm", "name=twice", *TWO_NODES)
    refusal = terminal("submit", *words, code=1)
    assert f"its job slurm:{run.job_id} is" in refusal
    run.wait_for_step(20)
    script = (run.folder / f"jobs/{run.job_id}.sh").read_text()
    second = terminal.cluster.call("sbatch", "--parsable", str(run.folder / f"jobs/{run.job_id}.sh")).strip()
    assert "--output" in script
    other = SlurmRun(terminal, run.folder, second)
    other.wait_for_job("FAILED")
    assert "another moe-train is running in it" in other.output
    run.wait_for_job("COMPLETED")
    assert run.attempts == 1
    assert run.numbers() == undisturbed.numbers()
    seen = "`submit` refuses; a script submitted by hand ends with the reason, the first run unharmed"
    scenarios.add("two submissions with one name", "the second is refused", seen)
