"""Runs on a real Ray of a head and two workers: what is promised of an undisturbed one, and of one treated badly.

Each fault is a real one, done to real processes; a run that met one ends with the very numbers of one that did not, or,
if it went on with another number of workers, with the same ones up to rounding.
"""

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors
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
from full_disks import SharedDisk, shared_disk
from network_nodes import Network, Node, require_namespaces
from own_processes import wait_for
from ray_cluster import RayCluster
from ray_jobs import RayRun, RayTerminal
from scenarios import Scenarios

from moe_cluster.linux import is_alive

pytestmark = pytest.mark.cluster

ROUNDED = ("steps=100000", "optim.lr=1e-5")
"""As long as a scenario takes on any machine, at a rate at which rounding stays rounding for thousands of steps."""
INTRODUCTION = """\
`make cluster` writes this section (tests/cluster/test_ray_jobs.py): a real Ray 2.60 of a head and two workers on
one machine of two busy cores, a run of two workers on two nodes, faults inflicted on real processes. "Back at work"
is the time from the fault to the first step after it, most of which is the start of Ray Train, Python and torch.
Runs that always had two workers ended with bitwise the numbers of an undisturbed run; those that shrank and grew,
the one that waited and the one that lost its head had the losses of a run with one worker at every step, within
1e-5.
"""
WAITING = "waiting for room: 2 workers are needed, and there is room for 1"


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedDisk]:
    require_namespaces()
    with shared_disk(tmp_path_factory.mktemp("disk"), mebibytes=16) as disk:
        yield disk


@pytest.fixture(scope="module")
def cluster(disk: SharedDisk, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    with Network("mtray", "10.78.0") as network:
        cluster = RayCluster(network, tmp_path_factory.mktemp("ray"))
        cluster.start()
        yield cluster


@pytest.fixture(scope="module")
def table() -> Scenarios:
    return Scenarios("ray", INTRODUCTION)


@pytest.fixture(scope="module")
def terminal(cluster: RayCluster, tmp_path_factory: pytest.TempPathFactory) -> RayTerminal:
    return RayTerminal(cluster, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def undisturbed(terminal: RayTerminal) -> RayRun:
    """A run on two nodes, two of four experts on each, that nothing happens to."""
    run = terminal.submit("undisturbed", *TWO_NODES)
    run.wait_until("finished")
    return run


@pytest.fixture(autouse=True)
def _repaired(cluster: RayCluster) -> Iterator[None]:
    yield
    cluster.repair()


def test_representative_a_run_on_two_nodes_ends_well(undisturbed: RayRun, table: Scenarios) -> None:
    assert "\x1b" not in undisturbed.output
    assert not re.search(r"^\(\w* ?pid=", undisturbed.output, re.MULTILINE)
    # These lines are rank 0's. The node that takes the cache's lock first builds the entry, and the other waits for it.
    assert re.search(r"^(learning 300 tokens|waiting for another process)", undisturbed.output, re.MULTILINE)
    assert undisturbed.attempts == 1
    assert undisturbed.workers_of(1) == 2
    assert {undisturbed.status()["step"], undisturbed.step} == {STEPS}
    table.add("nothing", "one attempt, exit code 0", "as promised")


def test_representative_a_killed_worker_is_named_and_the_run_goes_on(
    terminal: RayTerminal, undisturbed: RayRun, table: Scenarios
) -> None:
    run = terminal.submit("worker-killed", *TWO_NODES)
    run.wait_for_step(20)
    host, pid = run.worker(rank=1)
    os.kill(pid, signal.SIGKILL)
    seen_s, recovery_s = run.recovery(attempt=1)
    run.wait_until("finished")
    assert f"rank 1 on {host} failed after step" in run.output
    assert "killed by SIGKILL" in run.output
    assert run.attempts == 2
    assert run.numbers() == undisturbed.numbers()
    table.add(
        "a worker is killed",
        "named; the run resumes from its last checkpoint",
        f"seen after {seen_s:.0f} s, then as promised",
        recovery_s,
    )


@pytest.mark.parametrize("how", SHARED_WORK)
def test_a_killed_worker_of_any_engine_and_layout_comes_back(
    terminal: RayTerminal, table: Scenarios, how: str
) -> None:
    run = terminal.submit(f"killed-{how.partition('=')[0]}", *TWO_NODES, *SHARED_WORK[how], *CALM)
    run.wait_for_step(20)
    host, pid = run.worker(rank=1)
    os.kill(pid, signal.SIGKILL)
    seen_s, recovery_s = run.recovery(attempt=1)
    run.wait_until("finished")
    assert f"rank 1 on {host} failed " in run.output
    assert (run.attempts, run.step) == (2, STEPS)
    run.assert_resumed(attempt=2)
    run.assert_like_one_worker(*CALM)
    table.add(
        f"a worker is killed, `{how}`",
        "named; the run resumes from its last checkpoint",
        f"seen after {seen_s:.0f} s, then as promised; the losses of one worker, within 1e-5",
        recovery_s,
    )


def test_a_worker_that_hangs_is_named_killed_and_the_run_goes_on(
    terminal: RayTerminal, undisturbed: RayRun, table: Scenarios
) -> None:
    run = terminal.submit("hangs", *TWO_NODES, "job.hang_s=10")
    run.wait_for_step(20)
    host, pid = run.worker(rank=1)
    os.kill(pid, signal.SIGSTOP)
    seen_s, recovery_s = run.recovery(attempt=1)
    assert not is_alive(pid)
    run.wait_until("finished")
    assert f"rank 1 on {host}: no heartbeat for" in str(run.outcome(1)["cause"])
    assert run.attempts == 2
    assert run.numbers() == undisturbed.numbers()
    table.add(
        "a worker is stopped (SIGSTOP), `job.hang_s=10`",
        "named and killed; the run resumes from its last checkpoint",
        f"seen after {seen_s:.0f} s, then as promised",
        recovery_s,
    )


def test_a_slow_worker_is_named_once_and_the_run_goes_on(
    terminal: RayTerminal, undisturbed: RayRun, table: Scenarios
) -> None:
    run = terminal.submit("slow-worker", *TWO_NODES, *ENDLESS, "job.hang_s=10")
    run.wait_for_step(20)
    host, pid = run.worker(rank=1)
    began = time.monotonic()
    with slowed(pid):
        wait_for(lambda: "is slow" in run.output, every_s=2.0, timeout_s=PATIENCE_S)
    told_s = time.monotonic() - began
    assert f"rank 1 on {host} is slow" in run.status()["said"]
    run.cancel_after(more_steps=2)
    assert f"rank 1 on {host} is slow" in run.output
    assert run.output.count("is slow") == 1
    assert run.attempts == 1
    run.assert_goes_on_as(undisturbed)
    table.add(
        "a worker is slow, `job.hang_s=10`",
        "named once; nothing else",
        f"named after {told_s:.0f} s, in the job's output and in `status`; ends nothing",
    )


def test_a_damaged_newest_checkpoint_is_passed_over(
    terminal: RayTerminal, undisturbed: RayRun, table: Scenarios
) -> None:
    run = terminal.submit("damaged", *TWO_NODES)
    run.wait_for_step(42)
    newest = run.damage_newest_checkpoint()
    _, recovery_s = run.recovery(attempt=1)
    run.wait_until("finished")
    assert run.attempts == 2
    assert run.numbers() == undisturbed.numbers()
    assert f"{newest.name} is bad, so it is skipped" in (run.folder / "attempts/2/rank-0/log.txt").read_text()
    assert f"attempt 2, from step {int(newest.name.removeprefix('step_')) - 10}" in run.output
    table.add(
        "the newest checkpoint is damaged",
        "the one before it is used, and the log says so",
        "the damaged file named, the one before used",
        recovery_s,
    )


def _kill_raylet(node: Node) -> None:
    for pid in node.processes("raylet/raylet"):
        os.kill(pid, signal.SIGKILL)


def test_a_run_that_needs_all_its_nodes_waits_for_the_lost_one_and_says_so(
    cluster: RayCluster, terminal: RayTerminal, table: Scenarios
) -> None:
    run = terminal.submit("waits", *TWO_NODES, *ROUNDED)  # a short run would be over before the loss is seen
    run.wait_for_step(40)
    host, _ = run.worker(rank=1)
    lost = cluster.worker(host)
    _kill_raylet(lost)
    wait_for(lambda: WAITING in run.output, every_s=2.0, timeout_s=240)
    cluster.repair_worker(lost)
    run.wait_for_attempt(2)
    run.cancel_after(more_steps=20)
    assert [run.outcome(attempt)["exit_code"] for attempt in (1, 2)] == [1, 75]
    assert run.attempts == 2
    run.assert_like_one_worker(*ROUNDED)
    table.add(
        "a raylet is killed, all nodes are needed (`--nodes 2`)",
        "the run waits for the node, says so, and continues",
        "as promised",
    )


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        pytest.param(_kill_raylet, "a raylet is killed", id="raylet"),
        pytest.param(Node.crash, "a node crashes", id="node"),
        pytest.param(Node.partition, "a node is cut off", id="cable"),
    ],
)
def test_a_lost_node_is_named_the_run_shrinks_and_grows_again_when_it_is_back(
    cluster: RayCluster,
    terminal: RayTerminal,
    fault: Callable[[Node], None],
    what: str,
    table: Scenarios,
) -> None:
    run = terminal.submit(f"lost-{fault.__name__.strip('_')}", "--nodes", "1:2", *ROUNDED)
    run.wait_for_step(40)
    host, _ = run.worker(rank=1)
    lost = cluster.worker(host)
    fault(lost)
    seen_s, recovery_s = run.recovery(attempt=1)
    assert run.workers_of(2) == 1
    assert host in str(run.outcome(1)["cause"])
    cluster.repair_worker(lost)
    growth_s, regrown_s = run.recovery(attempt=2)
    run.cancel_after(more_steps=20)
    assert [run.outcome(attempt)["exit_code"] for attempt in (1, 2, 3)] == [1, 75, 75]
    assert [run.workers_of(attempt) for attempt in (1, 2, 3)] == [2, 1, 2]
    assert run.attempts == 3
    run.assert_like_one_worker(*ROUNDED)
    table.add(
        f"{what}, `--nodes 1:2`",
        "the node is named; the run continues with one worker, and with two when the node is back",
        f"seen after {seen_s:.0f} s, then as promised; saved for growth {growth_s:.0f} s after the node was back, "
        f"two workers after {regrown_s:.0f} s",
        recovery_s,
    )


def test_a_short_cut_of_the_network_is_waited_out(
    cluster: RayCluster, terminal: RayTerminal, undisturbed: RayRun, table: Scenarios
) -> None:
    run = terminal.submit("cut-and-healed", *TWO_NODES)
    run.wait_for_step(20)
    host, _ = run.worker(rank=1)
    node = cluster.worker(host)
    node.partition()
    time.sleep(2)
    node.heal()
    run.wait_until("finished")
    assert run.attempts == 1
    assert run.numbers() == undisturbed.numbers()
    table.add("a node is off the network for 2 s", "the run waits", "one attempt")


def test_a_cut_that_is_healed_after_the_attempt_ended_brings_the_run_back(
    cluster: RayCluster, terminal: RayTerminal, undisturbed: RayRun, table: Scenarios
) -> None:
    run = terminal.submit("cut-for-a-while", *TWO_NODES)
    run.wait_for_step(20)
    host, _ = run.worker(rank=1)
    node = cluster.worker(host)
    node.partition()
    wait_for((run.folder / "attempts/1/outcome.json").exists, every_s=0.1)
    node.heal()
    recovery_s = run.wait_for_attempt(2)
    run.wait_until("finished")
    assert f"its node {host} " in str(run.outcome(1)["cause"])
    assert run.attempts == 2
    assert run.workers_of(2) == 2
    assert run.numbers() == undisturbed.numbers()
    table.add(
        "a node is off the network until its attempt has ended, all nodes are needed (`--nodes 2`)",
        "the node is named; the run continues when it is back",
        "as promised, on the Ray that had run there before; timed from the healing",
        recovery_s,
    )


def test_a_full_disk_of_a_node_is_named_with_the_node(
    cluster: RayCluster, terminal: RayTerminal, undisturbed: RayRun, table: Scenarios, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    (tmp_path / "moe-train").mkdir()
    (tmp_path / "moe-train/cluster.yaml").write_text(f"ray: {{environment: {{MOE_TRAIN_CACHE: {cache}}}}}\n")
    full, site = cluster.workers[1], {"XDG_CONFIG_HOME": str(tmp_path)}
    with _full_disk(full, cache):
        run = terminal.submit("full-disk", *TWO_NODES, "--max-restarts", "0", **site)
        run.wait_until("failed")
    assert run.outcome(1)["host"] == full.name
    assert "No space left on device" in str(run.outcome(1)["cause"])
    assert str(cache) in str(run.outcome(1)["cause"])
    run.resume(**site)
    run.wait_until("finished")
    assert run.numbers() == undisturbed.numbers()
    assert run.attempts == 2
    table.add(
        "the disk of one node is full",
        "a clear end that names the node",
        "the node, the file and `No space left on device`; done by `resume` once there was space",
    )


def test_a_full_disk_under_the_run_ends_it_and_loses_nothing(
    disk: SharedDisk, terminal: RayTerminal, undisturbed: RayRun, table: Scenarios
) -> None:
    run = terminal.submit("no-room", *TWO_NODES, runs=disk.folder)

    def fails() -> None:
        wait_for(lambda: run.state not in ("queued", "running"), every_s=2.0, timeout_s=240)

    assert_outlives_full_disk(run, disk, undisturbed, fails, lambda: run.wait_until("finished"))
    table.add(*FULL_DISK)


def test_a_sweep_runs_to_its_end_and_prints_its_table(
    terminal: RayTerminal, undisturbed: RayRun, table: Scenarios
) -> None:
    assert_sweeps(terminal, undisturbed)
    table.add(
        "`sweep` of two seeds, `--wait`",
        "both end, one after the other where there is room for one; a table has their results",
        "as promised; one of the two runs equals the undisturbed one",
    )


@contextlib.contextmanager
def _full_disk(node: Node, folder: Path) -> Iterator[None]:
    """A folder that on one node is a disk without room."""
    for words in (
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)],
        ["sh", "-c", f"cat /dev/zero >{folder}/filler || true"],
    ):
        assert node.run(words, os.environ).returncode == 0
    yield
    assert node.run(["umount", "--lazy", str(folder)], os.environ).returncode == 0


def test_a_lost_head_loses_the_job_and_a_resume_goes_on_from_the_last_checkpoint(
    cluster: RayCluster, terminal: RayTerminal, table: Scenarios
) -> None:
    run = terminal.submit("head-lost", "--nodes", "2", *ROUNDED)
    run.wait_for_step(40)
    cluster.head.crash()
    began = time.monotonic()
    assert "there is no answer" in run.status()["said"]
    assert time.monotonic() - began < 15
    cluster.repair()
    run.resume()
    run.wait_for_attempt(2)
    run.cancel_after(more_steps=20)
    assert run.attempts == 2
    run.assert_like_one_worker(*ROUNDED)
    table.add(
        "the head crashes",
        "the job is lost with it; on a new head `resume` continues from the last checkpoint",
        "as promised",
    )


def test_a_cancelled_job_saves_and_a_resume_goes_on_where_it_was(
    terminal: RayTerminal, undisturbed: RayRun, table: Scenarios
) -> None:
    run = terminal.submit("cancelled", *TWO_NODES)
    run.wait_for_step(20)
    terminal("cancel", str(run.folder))
    run.wait_until("stopped")
    assert run.outcome(1)["exit_code"] == 75
    assert run.status()["saved_step"] == run.step
    run.resume()
    run.wait_until("finished")
    assert run.attempts == 2
    assert run.numbers() == undisturbed.numbers()
    table.add("`moe-train cancel`", "saves, and ends; `resume` continues", "no step repeated")


def test_a_job_cancelled_while_its_workers_start_ends_without_a_failure(
    terminal: RayTerminal, table: Scenarios
) -> None:
    run = terminal.submit("cancelled-early", *TWO_NODES)
    run.wait_for_attempt_folder(1)
    terminal("cancel", str(run.folder))
    run.wait_until("stopped")
    assert run.attempts == 1
    assert (run.outcome(1)["exit_code"], run.outcome(1)["cause"]) == (75, None)
    assert f"stopped before anything was saved; resume with: moe-train resume {run.folder}" in run.output
    assert run.step < STEPS
    table.add(
        "`moe-train cancel` while workers start", "stopped, which does not count as a failure", "as promised"
    )


def test_a_worker_that_cannot_start_is_named_and_tried_as_often_as_allowed(
    cluster: RayCluster, terminal: RayTerminal, table: Scenarios
) -> None:
    broken = cluster.workers[1]
    with _emptied(broken, Path(safetensors.__file__)):
        run = terminal.submit("cannot-start", *TWO_NODES, "--max-restarts", "1")
        run.wait_until("failed")
    assert run.attempts == 2
    for attempt in (1, 2):
        assert run.outcome(attempt)["host"] == broken.name
        assert "ImportError" in str(run.outcome(attempt)["cause"])
    table.add(
        "a worker cannot start (a package is broken on its node)",
        "named with its host and error, tried again `--max-restarts` times",
        "as promised",
    )


@contextlib.contextmanager
def _emptied(node: Node, file: Path) -> Iterator[None]:
    """A file that is empty on one node."""
    assert node.run(["mount", "--bind", "/dev/null", str(file)], os.environ).returncode == 0
    yield
    assert node.run(["umount", str(file)], os.environ).returncode == 0


def test_a_recipe_that_cannot_be_used_is_told_and_not_tried_again(terminal: RayTerminal) -> None:
    run = terminal.submit("no-text", *TWO_NODES, "data.corpus.path=/dev/null/none")
    run.wait_until("failed")
    assert run.attempts == 1
    assert "/dev/null/none" in str(run.outcome(1)["cause"])


def test_a_second_job_for_the_same_folder_is_refused(terminal: RayTerminal, table: Scenarios) -> None:
    run = terminal.submit("twice", *TWO_NODES)
    said = terminal("submit", "small.yaml", "name=twice", *terminal.where, *TWO_NODES, code=1)
    assert f"its job ray:{run.job_id} is" in said
    table.add("two submissions for one folder", "the second is refused", "`submit` refuses")
    terminal("cancel", str(run.folder))
    wait_for(lambda: run.state not in ("queued", "running"), every_s=2.0, timeout_s=240)


def test_a_wrong_token_is_refused_in_one_sentence(terminal: RayTerminal, table: Scenarios) -> None:
    words = ("submit", "small.yaml", "name=no-token", *terminal.where)
    said = terminal(*words, code=1, RAY_AUTH_TOKEN="0" * 64)
    assert "refused the token" in said
    assert "0" * 64 not in said
    table.add("a wrong token", "`submit` refuses in one sentence, which has no token", "as promised")


@pytest.mark.parametrize("address", ["http://10.78.0.99:8265", "http://127.0.0.1:9"])
def test_an_address_without_a_cluster_is_told_within_seconds(terminal: RayTerminal, address: str) -> None:
    began = time.monotonic()
    said = terminal("submit", "small.yaml", "name=nowhere", "--cluster", "ray", "--address", address, code=1)
    assert "there is no answer" in said
    assert time.monotonic() - began < 15
