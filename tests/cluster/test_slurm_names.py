"""Runs on a real Slurm whose names of nodes are not those of their hosts."""

import json
import re
from collections.abc import Iterator

import pytest
import slurm_cluster
from cluster_jobs import TWO_NODES
from conftest import skip_or_fail
from slurm_cluster import SlurmCluster
from slurm_jobs import SlurmTerminal

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    if reason := slurm_cluster.missing():
        skip_or_fail(reason)
    with SlurmCluster(num_nodes=2, hosts="host-of-") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def terminal(cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> SlurmTerminal:
    return SlurmTerminal(cluster, tmp_path_factory.mktemp("slurm"))


def test_an_unfit_node_is_left_out_by_slurms_name_for_it(
    cluster: SlurmCluster, terminal: SlurmTerminal
) -> None:
    cluster.inside("node2", "bash", "-c", "cat /dev/zero >/dev/shm/fill || true")
    run = terminal.submit("unfit", "--nodes", "1:2")
    assert "Restarts=0 " in run.wait_for_job("COMPLETED")
    cluster.inside("node2", "rm", "/dev/shm/fill")
    assert "node2 is excluded: /dev/shm" in run.output
    assert [run.workers_of(attempt) for attempt in (1, 2)] == [2, 1]
    beats = [path.read_text() for path in run.folder.glob("attempts/1/rank-*/heartbeat.json")]
    assert sorted(json.loads(beat)["host"] for beat in beats) == ["host-of-node1", "host-of-node2"]


def test_a_ray_inside_of_a_job_is_found_at_the_address_that_slurm_has(
    cluster: SlurmCluster, terminal: SlurmTerminal
) -> None:
    ray_inside = ("--option", "launcher=ray", "--option", "gres=gpu:0")
    run = terminal.submit("ray", *TWO_NODES, *ray_inside)
    first = re.search(r" BatchHost=(\S+)", run.wait_for_job("COMPLETED").replace("\n", " "))
    assert first
    address = cluster.inside(first[1], "getent", "hosts", first[1]).split()[0]
    head = (run.folder / f"jobs/{run.job_id}-ray-head.log").read_text()
    assert f"Local node IP: {address}" in re.sub(r"\x1b\[[0-9;]*m", "", head)
