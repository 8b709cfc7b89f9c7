"""Launchers are found by name, so a type checker does not see whether they are what launcher.py asks for."""

import importlib
import inspect
import json
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from moe_cluster.contract import HEARTBEAT_FILE, rank_dir
from moe_cluster.job import Attempt
from moe_cluster.launcher import LAUNCHERS, Launcher
from moe_cluster.node.elastic import forward_stop, with_threads


@pytest.mark.parametrize("method", ["choose_workers", "run", "command"])
@pytest.mark.parametrize("kind", LAUNCHERS)
def test_every_launcher_can_be_called_as_the_protocol_says(kind: str, method: str) -> None:
    module, name = LAUNCHERS[kind].split(":")
    own = getattr(getattr(importlib.import_module(module), name), method)
    assert inspect.signature(own) == inspect.signature(getattr(Launcher, method))


def test_the_cores_of_a_host_are_shared_out_over_its_own_workers_if_nobody_says_how_many_threads() -> None:
    cores = len(os.sched_getaffinity(0))
    assert with_threads({"A": "b"}, 1) == {"A": "b", "OMP_NUM_THREADS": str(cores)}
    assert with_threads({"OMP_NUM_THREADS": ""}, 2 * cores)["OMP_NUM_THREADS"] == "1"
    assert with_threads({"OMP_NUM_THREADS": "5"}, 2)["OMP_NUM_THREADS"] == "5"


def test_a_stop_reaches_each_worker_of_this_host_once_and_survives_a_heartbeat_that_cannot_be_read(
    tmp_path: Path,
) -> None:
    worker = subprocess.Popen(["sleep", "60"])
    told: set[Path] = set()
    ranks = {0: {"host": socket.gethostname(), "pid": worker.pid}, 1: {"host": "far", "pid": worker.pid}}
    for rank in range(3):
        folder = rank_dir(tmp_path, 1, rank)
        folder.mkdir(parents=True)
        (folder / HEARTBEAT_FILE).write_text(json.dumps(ranks[rank]) if rank in ranks else '{"host":')
    forward_stop(Attempt((), 3, tmp_path, 1), told)
    assert worker.wait(60) == -signal.SIGTERM
    assert told == {rank_dir(tmp_path, 1, rank) / HEARTBEAT_FILE for rank in (0, 1)}
