"""Ray on one node of a Slurm job: deaf to what Slurm sends to all, and gone with its folder at the end."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from own_processes import OwnProcesses, wait_for
from test_ray_in_slurm import ROOT

from moe_cluster.linux import children
from moe_cluster.ray.node import TOLD

# Like Ray, it minds SIGTERM, has children, in sessions of their own, and files in its folder.
RAY = """\
import pathlib, signal, subprocess, sys
folder = pathlib.Path(sys.argv[-1].partition("--temp-dir=")[2])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
(folder / "session").mkdir(parents=True)
folder.chmod(0o777)
subprocess.Popen(["sleep", "60"], start_new_session=True)
(folder / "started_in").symlink_to(pathlib.Path.cwd())
pathlib.Path(sys.argv[1]).write_text(str(folder))
sys.exit(int(sys.stdin.read() or 3)) if "ends" in sys.argv else signal.pause()
"""


class Node:
    """The process that has a program in the place of Ray, and what is known of it."""

    def __init__(self, tmp_path: Path, *words: str) -> None:
        self.processes, self._told = OwnProcesses(), tmp_path / "folder"
        ray = [sys.executable, "-c", RAY, str(self._told), *words]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "moe_cluster.ray.node", "moe-train-test", *ray],
            env={"PYTHONPATH": str(ROOT / "cluster"), "PATH": "/usr/bin:/bin", **self.processes.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        wait_for(lambda: self._told.exists() and self._told.read_text() != "")

    @property
    def folder(self) -> Path:
        """Of this Ray."""
        return Path(self._told.read_text())


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    yield node
    for pid in node.processes.living():
        os.kill(pid, signal.SIGKILL)
    node.process.communicate()


def test_ray_has_a_short_folder_of_this_user_alone(node: Node) -> None:
    assert str(node.folder).startswith("/tmp/moe-train-test-")
    assert node.folder.parent.stat().st_mode & 0o777 == 0o700
    sockets = "session_2026-11-25_22-51-10_980105_4194304/sockets/plasma_store.1"
    assert len(str(node.folder).replace("-test-", "-67043328-")) + 1 + len(sockets) <= 107
    node.process.communicate(timeout=30)


def test_ray_starts_in_its_own_folder_and_not_among_the_users_modules(node: Node) -> None:
    assert (node.folder / "started_in").resolve() == node.folder.parent
    node.process.communicate(timeout=30)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_all_of_it_is_told_and_ends_nothing(node: Node, number: int) -> None:
    before = node.processes.living()
    assert len(before) == 3
    for pid in before:
        os.kill(pid, number)
    assert node.process.stdout
    assert node.process.stdout.readline() == TOLD + "\n"
    assert node.processes.living() == before
    output, _ = node.process.communicate(timeout=30)
    assert (output, node.process.returncode) == ("", 0)


def test_all_of_it_ends_with_its_standard_input_and_leaves_no_folder(node: Node) -> None:
    folder = node.folder
    assert (folder / "session").exists()
    node.process.communicate(timeout=30)
    assert node.processes.living() == []
    assert not folder.parent.exists()


def test_a_ray_of_another_node_than_the_head_is_started_again_in_a_new_folder(node: Node) -> None:
    folder, before = node.folder, node.processes.living()
    (ray,) = children(node.process.pid)
    os.kill(ray, signal.SIGKILL)
    wait_for(lambda: node.folder not in (folder, Path()))
    wait_for(lambda: len(node.processes.living()) == 3)
    assert not folder.parent.exists()
    assert not set(before[1:]) & set(node.processes.living())
    output, _ = node.process.communicate(timeout=30)
    assert output == "moe-train: Ray on this node has ended with -9, and is started again\n"
    assert node.processes.living() == []


def test_a_head_that_ends_by_itself_takes_the_rest_with_it(tmp_path: Path) -> None:
    node = Node(tmp_path, "ends", "--head")
    assert node.process.wait(timeout=30) == 3
    node.process.communicate()
    assert node.processes.living() == []
    assert not node.folder.parent.exists()
