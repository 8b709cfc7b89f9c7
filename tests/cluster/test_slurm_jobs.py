"""Runs on a real Slurm of three nodes: what is promised of an undisturbed one, and of one that a cluster treats badly.

Each fault is a real one, done to real processes; a run that met one ends with the very numbers of one that did not.
"""

import os
import signal
from collections.abc import Iterator

import pytest
import slurm_cluster
from conftest import skip_or_fail
from slurm_cluster import SlurmCluster
from slurm_jobs import STEPS, TWO_NODES, SlurmRun, Terminal

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    if reason := slurm_cluster.missing():
        skip_or_fail(reason)
    with SlurmCluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def terminal(cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Terminal:
    return Terminal(cluster, tmp_path_factory.mktemp("slurm"))


@pytest.fixture(scope="module")
def undisturbed(terminal: Terminal) -> SlurmRun:
    """A run on two nodes, one expert in two on each, that nothing happens to."""
    run = terminal.submit("undisturbed", *TWO_NODES)
    run.wait_for_job("COMPLETED")
    return run


@pytest.fixture(autouse=True)
def _repaired(cluster: SlurmCluster) -> Iterator[None]:
    yield
    cluster.repair()


def test_representative_a_run_on_two_nodes_ends_well(undisturbed: SlurmRun) -> None:
    assert undisturbed.attempts == 1
    assert {undisturbed.status()["step"], undisturbed.step} == {STEPS}


def test_representative_a_killed_worker_is_named_and_the_run_goes_on_where_it_is(
    terminal: Terminal, undisturbed: SlurmRun
) -> None:
    run = terminal.submit("worker-killed", *TWO_NODES)
    run.wait_for_step(20)
    host, pid = run.worker(rank=1)
    os.kill(pid, signal.SIGKILL)
    run.wait_for_job("COMPLETED")
    assert f"rank 1 on {host} failed after step" in run.output
    assert "killed by SIGKILL" in run.output
    assert run.attempts == 2
    assert run.numbers() == undisturbed.numbers()
