"""Lists the nodes of a Ray cluster that answer, and the number of workers for which they have room.

Ray takes a dead node for alive for up to a minute, and would wait for workers there. So a node counts only if its
raylet also accepts a connection: that takes milliseconds on a healthy node, and ANSWER_S on one that is cut off.
"""

import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import ray

from moe_cluster.node.bad_nodes import BadNodes
from moe_cluster.share import Share

ANSWER_S = 2.0


@dataclass(frozen=True)
class RayNode:
    """Describes one node that Ray takes for alive."""

    id: str
    address: str
    port: int
    """Port of its raylet."""
    host: str
    free: Mapping[str, float]
    """Resources that nobody holds."""

    def room(self, share: Share) -> int:
        """Returns the number of workers that could start here."""
        fits = [int(self.free.get(name, 0.0) / need + 1e-9) for name, need in share.resources.items() if need]
        return min([share.per_node, *fits])


def alive_nodes() -> list[RayNode]:
    """Returns the nodes that Ray takes for alive and that answer."""
    free = ray._private.state.available_resources_per_node()  # Ray has no public way to ask this
    believed = [
        RayNode(
            id=node["NodeID"],
            address=node["NodeManagerAddress"],
            port=node["NodeManagerPort"],
            host=node["NodeManagerHostname"],
            free=free.get(node["NodeID"], {}),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
    if not believed:
        return []
    with ThreadPoolExecutor(min(32, len(believed))) as pool:
        answers = list(pool.map(_answers, believed))
    return [node for node, there in zip(believed, answers, strict=True) if there]


def fit(nodes: Sequence[RayNode], bad: BadNodes) -> list[RayNode]:
    """Returns the `nodes` that no preflight has found unfit."""
    return [node for node in nodes if not bad.has(node.host)]


def room(nodes: Sequence[RayNode], share: Share) -> int:
    """Returns the number of workers that could start on all these nodes together."""
    return sum(node.room(share) for node in nodes)


def _answers(node: RayNode) -> bool:
    try:
        with socket.create_connection((node.address, node.port), timeout=ANSWER_S):
            return True
    except OSError:
        return False
