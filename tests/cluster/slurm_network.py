"""The network of the tests' Slurm: a bridge that the controller is on, and a namespace with a cable for each node.

A namespace outlives its node, so connections of a node that crashes are closed, as those of a machine that reboots
are; one that is cut off is silent.
"""

import os
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

NAMESPACES = Path("/run/netns")


class SlurmNetwork:
    """Of one session, which is told from others by its process id."""

    def __init__(self, session: int, names: Sequence[str]) -> None:
        self._tag, self._prefix = f"mts{session % 100000}", f"10.77.{session % 250 + 1}"
        self.controller = f"{self._prefix}.1"
        self.addresses = {name: f"{self._prefix}.{11 + number}" for number, name in enumerate(names)}

    def make(self) -> None:
        """Create all of it."""
        run("ip", "link", "add", self._tag, "type", "bridge")
        run("ip", "addr", "add", f"{self.controller}/24", "dev", self._tag)
        run("ip", "link", "set", self._tag, "up")
        for name, address in self.addresses.items():
            space, cable = self.namespace(name).name, self._cable(name)
            run("ip", "netns", "add", space)
            run("ip", "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
            run("ip", "link", "set", cable, "master", self._tag, "up")
            run("ip", "-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
            run("ip", "-n", space, "link", "set", "eth0", "up")
            run("ip", "-n", space, "link", "set", "lo", "up")
            run("ip", "-n", space, "route", "add", "default", "via", self.controller)

    def namespace(self, name: str) -> Path:
        """The file that stands for a node's network."""
        return NAMESPACES / f"{self._tag}{name}"

    def cut_off(self, name: str) -> None:
        """Take a node off the network."""
        run("ip", "link", "set", self._cable(name), "down")

    def heal(self, name: str) -> None:
        """Give a node its network back."""
        run("ip", "link", "set", self._cable(name), "up")

    def remove(self) -> None:
        """Remove whatever there is of it."""
        for space in NAMESPACES.glob(f"{self._tag}node*"):
            run("ip", "netns", "del", space.name)
        if self._tag in [name for _, name in socket.if_nameindex()]:
            run("ip", "link", "del", self._tag)

    def _cable(self, name: str) -> str:
        return f"{self._tag}v{list(self.addresses).index(name)}"


def run(*command: str, environment: dict[str, str] | None = None) -> str:
    """The output of a command, which must succeed."""
    done = subprocess.run(
        command,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout
