"""Ports of a job: below those that Linux gives to outgoing connections, and others for each job and attempt."""

import contextlib
import socket

from moe_cluster.errors import ClusterError

FIRST_PORT, NUM_PORTS = 20000, 12000


def free_ports(start: int, count: int) -> list[int]:
    """So many ports that are free on this host, the first node of its job. Raises ClusterError if there are none."""
    found: list[int] = []
    for number in range(NUM_PORTS):
        port = FIRST_PORT + (start * 101 + number) % NUM_PORTS
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            found.append(port)
        if len(found) == count:
            return found
    raise ClusterError(f"no port from {FIRST_PORT} on is free on {socket.gethostname()}")
