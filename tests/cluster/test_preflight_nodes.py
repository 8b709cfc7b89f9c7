"""Real workers on three nodes of their own network: who cannot talk to whom is named before a collective hangs."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from network_nodes import Network, Node, require_namespaces
from small_run import RECIPE, write_corpus

ROOT = Path(__file__).parents[2]
PORT = 29871

pytestmark = pytest.mark.cluster


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    require_namespaces()
    with Network("moepre", "10.79.0") as network:
        yield [network.add(number) for number in (1, 2, 3)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "corpus")
    recipe = RECIPE.format(corpus=tmp_path / "corpus").replace("global_batch: 8", "global_batch: 12")
    recipe = recipe.replace("num_experts: 4", "num_experts: 6") + "parallel: {expert: 3}\n"
    (tmp_path / "small.yaml").write_text(recipe)
    return tmp_path


def train(nodes: list[Node], folder: Path) -> list[int]:
    """One worker on each node, rank by rank; their exit codes."""
    workers = []
    for rank, node in enumerate(nodes):
        place = {"RANK": rank, "WORLD_SIZE": len(nodes), "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
        meeting = {"MASTER_ADDR": nodes[0].address, "MASTER_PORT": PORT, "MOE_TRAIN_CACHE": folder / "cache"}
        path = os.pathsep.join(map(str, (ROOT, ROOT / "cluster", ROOT / "kernels")))
        extra = {name: str(value) for name, value in {**place, **meeting, "PYTHONPATH": path}.items()}
        words = [sys.executable, "-m", "moe_train.worker", str(folder / "small.yaml"), "--run-dir"]
        workers.append(
            subprocess.Popen(
                node.command([*words, str(folder / "run")]),
                env={**os.environ, "OMP_NUM_THREADS": "1", **extra},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )
    return [worker.wait(timeout=150) for worker in workers]


def test_nodes_that_reach_each_other_train_and_are_told_how_fast(nodes: list[Node], folder: Path) -> None:
    assert train(nodes, folder) == [0, 0, 0]
    log = (folder / "run/attempts/1/rank-0/log.txt").read_text()
    assert "preflight: all 3 ranks reach each other; between 3 nodes, in a ring: " in log


def test_representative_a_pair_of_nodes_that_cannot_talk_is_named(nodes: list[Node], folder: Path) -> None:
    """What node 2 sends to node 3 goes to a machine that does not exist, so it vanishes without an answer."""
    nobody = ["lladdr", "02:00:00:00:00:99", "nud", "permanent", "dev", "eth0"]
    subprocess.run(nodes[1].command(["ip", "neigh", "replace", nodes[2].address, *nobody]), check=True)
    assert train(nodes, folder) == [1, 1, 1]
    for rank in range(3):
        error = json.loads((folder / f"run/attempts/1/rank-{rank}/error.json").read_text())
        assert error["explained"]
        one, other, way_out = error["message"].splitlines()
        assert one.startswith(f"rank 1 on moepre2 cannot reach rank 2 on moepre3 at {nodes[2].address}:")
        assert other.startswith(f"rank 2 on moepre3 cannot reach rank 1 on moepre2 at {nodes[1].address}:")
        assert one.endswith("(timed out)")
        assert "firewalls and routes" in way_out
