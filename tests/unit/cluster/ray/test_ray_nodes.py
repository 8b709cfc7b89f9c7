"""Room on the nodes of a Ray cluster, and what changes there, with nodes that a preflight found unfit."""

from collections.abc import Callable
from pathlib import Path

import pytest

from moe_cluster.node.bad_nodes import BadNodes, record
from moe_cluster.ray import changes, launcher
from moe_cluster.ray.changes import SETTLE_S, Changes
from moe_cluster.ray.launcher import RayLauncher
from moe_cluster.ray.nodes import RayNode, fit, room
from moe_cluster.share import Share
from moe_cluster.stop import StopRequest

SHARE = Share({"CPU": 2}, per_node=4)
NODES = [RayNode(f"id{number}", f"10.0.0.{number}", 1, f"node{number}", {"CPU": 6}) for number in (1, 2, 3)]


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> list[RayNode]:
    """The nodes that answer: a list to change."""
    there = list(NODES)
    monkeypatch.setattr(changes, "alive_nodes", lambda: there)
    return there


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the seconds that have gone by."""
    now = [100.0]
    monkeypatch.setattr(changes.time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, 100.0 + seconds)


def test_there_is_no_room_on_an_unfit_node() -> None:
    found = fit(NODES, BadNodes({"node2": "its disk is full"}))
    assert [node.host for node in found] == ["node1", "node3"]
    assert room(found, SHARE) == 6


@pytest.mark.parametrize(("bad", "expected"), [(BadNodes(), 6), (BadNodes({"node2": "full"}), None)])
def test_a_run_does_not_grow_onto_an_unfit_node(
    alive: list[RayNode], clock: Callable[[float], None], bad: BadNodes, expected: int | None
) -> None:
    alive[:] = NODES[:2]  # and all that the third could hold is taken by the attempt
    changes = Changes([NODES[2]], workers=3, allowed=(3, 6), share=SHARE, bad=bad)
    alive[0] = RayNode("id1", "10.0.0.1", 1, "node1", {"CPU": 0})
    for seconds in (3.0, 3.0 + SETTLE_S):
        clock(seconds)
        changes.look()
    assert changes.room_for == expected


def test_an_unfit_node_can_be_lost_like_any_other(
    alive: list[RayNode], clock: Callable[[float], None]
) -> None:
    changes = Changes(NODES, workers=9, allowed=(9,), share=SHARE, bad=BadNodes({"node1": "slow"}))
    alive.remove(NODES[0])
    for seconds in (3.0, 3.0 + SETTLE_S):
        clock(seconds)
        changes.look()
    assert changes.lost == [NODES[0]]


@pytest.mark.usefixtures("alive")
def test_a_ray_of_a_slurm_job_has_slurm_replace_an_unfit_node(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[dict[str, str], str]] = []
    monkeypatch.setattr(RayLauncher, "_join", lambda self: None)
    monkeypatch.setattr(launcher, "alive_nodes", lambda: NODES)
    monkeypatch.setattr(launcher, "SETTLE_S", 0.0)
    monkeypatch.setattr(launcher, "queue_again_without", lambda bad, job, *rest: asked.append((bad, job)))
    folder = tmp_path / "attempts/1"
    folder.mkdir(parents=True)
    record(folder, {"node2": "its disk is full", "of-an-earlier-job": "cut off"})
    here = RayLauncher({"MOE_TRAIN_JOB": "slurm:12"})
    assert here.choose_workers(tmp_path, (4,), StopRequest(), lambda sentence: None) == 4
    assert asked == []
    assert here.choose_workers(tmp_path, (18,), StopRequest(), lambda sentence: None) is None
    assert asked == [({"node2": "its disk is full"}, "12")]
