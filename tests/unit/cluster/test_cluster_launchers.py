"""Launchers are found by name, so a type checker does not see whether they are what launcher.py asks for."""

import importlib
import inspect

import pytest

from moe_cluster.launcher import LAUNCHERS, Launcher


@pytest.mark.parametrize("method", ["choose_workers", "run", "command"])
@pytest.mark.parametrize("kind", LAUNCHERS)
def test_every_launcher_can_be_called_as_the_protocol_says(kind: str, method: str) -> None:
    module, name = LAUNCHERS[kind].split(":")
    own = getattr(getattr(importlib.import_module(module), name), method)
    assert inspect.signature(own) == inspect.signature(getattr(Launcher, method))
