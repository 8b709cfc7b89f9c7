"""Launchers are found by name, so a type checker does not see whether they are what launcher.py asks for."""

import importlib
import inspect
import os

import pytest

from moe_cluster.elastic import with_threads
from moe_cluster.launcher import LAUNCHERS, Launcher


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
