"""Records nodes that a preflight found unfit, which the next attempts of the run exclude.

Rank 0 records them when they make its attempt fail; every launcher reads the record before it chooses nodes. After
LEFT_OUT_S a node is tried again: somebody may have repaired it.
"""

import json
import os
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from moe_cluster.atomic import replace_text
from moe_cluster.contract import BAD_NODES_FILE, in_attempts

LEFT_OUT_S = 3600.0
SLURM_NAME_VARIABLE = "SLURMD_NODENAME"
"""Slurm's name of a task's node, which may differ from the host's."""


class BadNodes(dict[str, str]):
    """Maps an unfit host to the reason. Names with and without a domain are the same host."""

    def has(self, host: str) -> bool:
        """Returns whether `host` is one of them."""
        return _plain(host) in map(_plain, self)

    def among(self, hosts: Iterable[str]) -> "BadNodes":
        """Returns the unfit ones of `hosts`, by their names there."""
        reasons = {_plain(host): why for host, why in self.items()}
        return BadNodes({host: reasons[_plain(host)] for host in hosts if _plain(host) in reasons})

    @property
    def sentences(self) -> list[str]:
        """Returns a sentence for each of them."""
        return [f"{host} is excluded: {why}" for host, why in self.items()]


def own_name() -> str:
    """Returns this node's name as its launcher uses it: Slurm's, or the host's."""
    return os.environ.get(SLURM_NAME_VARIABLE) or socket.gethostname()


def record(attempt: Path, nodes: Mapping[str, str]) -> None:
    """Record unfit hosts and the reasons in the folder of an attempt. Raises OSError."""
    content = {"time": time.time(), "nodes": dict(nodes)}
    replace_text(attempt / BAD_NODES_FILE, json.dumps(content) + "\n")


def left_out(run_dir: Path, now: float | None = None) -> BadNodes:
    """Returns the nodes that this run's attempts found unfit in the last LEFT_OUT_S. `now`: seconds since 1970."""
    now = time.time() if now is None else now
    nodes = BadNodes()
    for path in in_attempts(run_dir, BAD_NODES_FILE):
        content = json.loads(path.read_text())
        if now - content["time"] < LEFT_OUT_S:
            nodes |= {_plain(host): why for host, why in content["nodes"].items()}
    return nodes


def _plain(host: str) -> str:
    return host.partition(".")[0]
