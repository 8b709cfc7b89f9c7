"""Chooses ports for a job below those of Linux's outgoing connections, different for each job and attempt."""

import contextlib
import socket

from moe_cluster.errors import ClusterError

FIRST_PORT, NUM_PORTS = 20000, 12000


def free_ports(start: int, count: int) -> list[int]:
    """Returns `count` free ports of this host, the first node of its job. Raises ClusterError if there are too few."""
    ports: list[int] = []
    for number in range(NUM_PORTS):
        port = FIRST_PORT + (start * 101 + number) % NUM_PORTS
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            ports.append(port)
        if len(ports) == count:
            return ports
    raise ClusterError(
        f"no port from {FIRST_PORT} to {FIRST_PORT + NUM_PORTS - 1} is free on {socket.gethostname()}; end what uses "
        "them, or exclude the node"
    )
