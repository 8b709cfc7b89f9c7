"""Runs on a real Ray of a head and two workers: what is promised of an undisturbed one, and of one treated badly.

Each fault is a real one, done to real processes; a run that met one ends with the very numbers of one that did not.
"""

import os
import signal
from collections.abc import Iterator

import pytest
from network_nodes import Network, require_namespaces
from ray_cluster import RayCluster
from ray_jobs import TWO_NODES, RayRun, RayTerminal
from slurm_jobs import STEPS

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    require_namespaces()
    with Network("mtray", "10.78.0") as network:
        cluster = RayCluster(network, tmp_path_factory.mktemp("ray"))
        cluster.start()
        yield cluster


@pytest.fixture(scope="module")
def terminal(cluster: RayCluster, tmp_path_factory: pytest.TempPathFactory) -> RayTerminal:
    return RayTerminal(cluster, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def undisturbed(terminal: RayTerminal) -> RayRun:
    """A run on two nodes, two of four experts on each, that nothing happens to."""
    run = terminal.hand_over("undisturbed", *TWO_NODES)
    run.wait_until("finished")
    return run


@pytest.fixture(autouse=True)
def _repaired(cluster: RayCluster) -> Iterator[None]:
    yield
    cluster.repair()


def test_representative_a_run_on_two_nodes_ends_well(undisturbed: RayRun) -> None:
    assert undisturbed.attempts == 1
    assert undisturbed.workers_of(1) == 2
    assert {undisturbed.status()["step"], undisturbed.step} == {STEPS}


def test_representative_a_killed_worker_is_named_and_the_run_goes_on(
    terminal: RayTerminal, undisturbed: RayRun
) -> None:
    run = terminal.hand_over("worker-killed", *TWO_NODES)
    run.wait_for_step(20)
    host, pid = run.worker(rank=1)
    os.kill(pid, signal.SIGKILL)
    run.wait_until("finished")
    assert f"rank 1 on {host} failed after step" in run.output
    assert "killed by SIGKILL" in run.output
    assert run.attempts == 2
    assert run.numbers() == undisturbed.numbers()
