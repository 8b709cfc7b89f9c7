"""Which nodes a run leaves out, and for how long."""

import socket
from pathlib import Path

from moe_cluster.node import bad_nodes
from moe_cluster.node.bad_nodes import LEFT_OUT_S, left_out, own_name


def record(run_dir: Path, attempt: int, **nodes: str) -> None:
    folder = run_dir / f"attempts/{attempt}"
    folder.mkdir(parents=True)
    bad_nodes.record(folder, {name.replace("_", "."): why for name, why in nodes.items()})


def test_a_run_that_met_no_bad_node_leaves_none_out(tmp_path: Path) -> None:
    assert left_out(tmp_path) == {}


def test_what_several_attempts_found_is_left_out_with_the_latest_reason(tmp_path: Path) -> None:
    record(tmp_path, 9, node1="full", node2="cut off")
    record(tmp_path, 10, node1="fuller")
    assert left_out(tmp_path) == {"node1": "fuller", "node2": "cut off"}


def test_after_a_while_a_node_is_tried_again(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(bad_nodes.time, "time", lambda: 1000.0)
    record(tmp_path, 1, node1="full")
    assert left_out(tmp_path, 999.0 + LEFT_OUT_S) == {"node1": "full"}
    assert left_out(tmp_path, 1000.0 + LEFT_OUT_S) == {}


def test_a_host_is_the_same_with_its_domain(tmp_path: Path) -> None:
    record(tmp_path, 1, node1_cluster_org="full")
    assert left_out(tmp_path).has("node1")
    assert left_out(tmp_path).has("node1.cluster.org")
    assert not left_out(tmp_path).has("node10")
    assert left_out(tmp_path).among(["node1.b", "node2"]) == {"node1.b": "full"}
    assert left_out(tmp_path).among(["node1.b"]).has("node1")


def test_each_is_told_with_its_reason(tmp_path: Path) -> None:
    record(tmp_path, 1, node1="its disk is full", node2="its GPU 3 does not answer")
    assert left_out(tmp_path).sentences == [
        "node1 is excluded: its disk is full",
        "node2 is excluded: its GPU 3 does not answer",
    ]


def test_a_node_is_called_as_slurm_calls_it_and_elsewhere_as_its_host(monkeypatch) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "gpu-17")
    assert own_name() == "gpu-17"
    monkeypatch.delenv("SLURMD_NODENAME")
    assert own_name() == socket.gethostname()
