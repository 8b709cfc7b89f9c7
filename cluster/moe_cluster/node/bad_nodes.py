"""Nodes that a preflight found unfit, and that the next attempts of the run leave out.

Rank 0 writes them down where its attempt fails for them; launchers of any kind read it before they choose nodes. After
LEFT_OUT_S a node is tried again: somebody may have mended it.
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
"""Where Slurm tells a task its node's name, which need not be the host's."""


class BadNodes(dict[str, str]):
    """Host -> what is wrong with it. Names with and without a domain are the same host."""

    def has(self, host: str) -> bool:
        """Whether `host` is one of them."""
        return _plain(host) in map(_plain, self)

    def among(self, hosts: Iterable[str]) -> "BadNodes":
        """Those of `hosts`, by the names that they have there."""
        reasons = {_plain(host): why for host, why in self.items()}
        return BadNodes({host: reasons[_plain(host)] for host in hosts if _plain(host) in reasons})

    @property
    def sentences(self) -> list[str]:
        """One for each of them."""
        return [f"{host} is left out: {why}" for host, why in self.items()]


def own_name() -> str:
    """This node's name as whoever chooses nodes knows it: Slurm's, or the host's."""
    return os.environ.get(SLURM_NAME_VARIABLE) or socket.gethostname()


def record(attempt: Path, nodes: Mapping[str, str]) -> None:
    """Write down, in the folder of an attempt, what is wrong with which host. Raises OSError."""
    content = {"time": time.time(), "nodes": dict(nodes)}
    replace_text(attempt / BAD_NODES_FILE, json.dumps(content) + "\n")


def left_out(run_dir: Path, now: float | None = None) -> BadNodes:
    """What the attempts of this run have found in the last LEFT_OUT_S. `now`: seconds since 1970."""
    now = time.time() if now is None else now
    found = BadNodes()
    for path in in_attempts(run_dir, BAD_NODES_FILE):
        content = json.loads(path.read_text())
        if now - content["time"] < LEFT_OUT_S:
            found |= {_plain(host): why for host, why in content["nodes"].items()}
    return found


def _plain(host: str) -> str:
    return host.partition(".")[0]
