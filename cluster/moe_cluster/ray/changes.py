"""Watches a Ray cluster while an attempt runs, for lost nodes and for room for more workers."""

import time
from collections.abc import Sequence

from moe_cluster.node.bad_nodes import BadNodes
from moe_cluster.ray.nodes import RayNode, alive_nodes, fit, room
from moe_cluster.share import Share

LOOK_EVERY_S = 2.0
"""Seconds between two checks of the cluster's nodes."""
SETTLE_S = 6.0
"""A change counts once it has lasted this long. Ray itself takes a dead node for alive for about a minute."""


class Changes:
    """Tracks the changes since an attempt began on `nodes` with `workers`, one of the `allowed` numbers."""

    def __init__(
        self, nodes: Sequence[RayNode], workers: int, allowed: Sequence[int], share: Share, bad: BadNodes
    ) -> None:
        """`bad` nodes do not count as room."""
        self._bad = bad
        self._nodes, self._workers, self._share = nodes, workers, share
        self._larger = [number for number in allowed if number > workers]
        self._looked = time.monotonic()
        self._answered = {node.id: self._looked for node in nodes}
        self._roomy_since: float | None = None
        self.lost: list[RayNode] = []
        """Nodes of the attempt that have not answered for a while."""
        self.room_for: int | None = None
        """The largest allowed number of workers above the present one that there has been room for, for a while."""

    def look(self) -> None:
        """Check the cluster, if it is time to."""
        now = time.monotonic()
        if now - self._looked < LOOK_EVERY_S:
            return
        self._looked = now
        there = alive_nodes()
        self._answered |= {node.id: now for node in there}
        self.lost = [node for node in self._nodes if now - self._answered[node.id] >= SETTLE_S]
        most = self._workers + room(fit(there, self._bad), self._share)
        fitting = [number for number in self._larger if number <= most]
        if not fitting:
            self._roomy_since = None
            return
        self._roomy_since = self._roomy_since or now
        if now - self._roomy_since >= SETTLE_S:
            self.room_for = fitting[-1]
