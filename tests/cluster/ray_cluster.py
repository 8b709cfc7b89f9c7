"""A real Ray cluster of a head and two workers, one raylet in each node of a network of namespaces, with a token.

The head has no CPUs for workers; each worker node has one. Nothing here is simulated: `ray start` runs on every node.
"""

import contextlib
import os
import secrets
import signal
import sys
from pathlib import Path

from network_nodes import Network, Node
from small_run import OUR_NAMES, lay_traps

OBJECT_STORE_BYTES = 80_000_000
GCS_PORT, DASHBOARD_PORT = 6379, 8265
STARTS = 3
"""Of a node: Ray gives each 30 s, which on a busy machine may not do."""


class RayCluster:
    """Nodes 1 (the head), 2 and 3."""

    def __init__(self, network: Network, folder: Path) -> None:
        self.network, self.folder = network, folder
        self.token = secrets.token_hex(32)
        self.start_folder = folder / "started_here"
        self.start_folder.mkdir()
        lay_traps(self.start_folder, OUR_NAMES)  # Ray's dashboard would import a queue.py from here
        self.head = network.add(1)
        self.workers = [network.add(2), network.add(3)]

    @property
    def address(self) -> str:
        """Of the Jobs API."""
        return f"http://{self.head.address}:{DASHBOARD_PORT}"

    @property
    def environment(self) -> dict[str, str]:
        """Of every process on a node, and of those who ask the cluster."""
        return {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_register_timeout_seconds": "240",  # 60 s: too few on a busy machine
            "OMP_NUM_THREADS": "1",
        }

    def processes(self, host: str) -> list[int]:
        """Ids, as this machine sees them, of all processes on the node of that name."""
        return next(node for node in self.nodes if node.name == host).processes("")

    @property
    def nodes(self) -> list[Node]:
        """The head first."""
        return [self.head, *self.workers]

    def worker(self, host: str) -> Node:
        """The worker node of that name."""
        return next(node for node in self.workers if node.name == host)

    def repair(self) -> None:
        """End what still runs of jobs, boot what has crashed, plug in what is unplugged, and start Ray wherever it
        does not run."""
        for pid in (pid for node in self.nodes if node.is_up for pid in node.processes("moe_train")):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        whole = self.head.is_up and self.head.processes("gcs_server")
        if not whole:
            for node in self.nodes:
                node.crash()
                node.boot()
            self.start()
            return
        for worker in self.workers:
            self.repair_worker(worker)

    def repair_worker(self, node: Node) -> None:
        """The same for one worker node. Where the cable was out, Ray starts anew: the head may have given it up."""
        if not node.is_up or not node.processes("raylet/raylet") or not node.is_plugged_in:
            node.crash()
            node.boot()
            self.start_worker(node)

    def start(self) -> None:
        """Start Ray on all nodes."""
        self.start_head()
        for worker in self.workers:
            self.start_worker(worker)

    def start_head(self) -> None:
        """Start Ray on the head, in a node that runs nothing."""
        self._ray_start(
            self.head,
            "--head",
            f"--port={GCS_PORT}",
            "--num-cpus=0",
            "--dashboard-host=0.0.0.0",
            f"--dashboard-port={DASHBOARD_PORT}",
            "--disable-usage-stats",
        )

    def start_worker(self, node: Node) -> None:
        """Start Ray on a worker node that runs nothing."""
        self._ray_start(node, f"--address={self.head.address}:{GCS_PORT}", "--num-cpus=1")

    def _ray_start(self, node: Node, *options: str) -> None:
        ray = Path(sys.executable).parent / "ray"
        # Ray and the commands of its jobs stand where it was started.
        words = [
            "env",
            f"--chdir={self.start_folder}",
            str(ray),
            "start",
            f"--node-ip-address={node.address}",
            *options,
        ]
        words.append(f"--object-store-memory={OBJECT_STORE_BYTES}")
        for _ in range(STARTS):
            done = node.run(words, self.environment, 180)
            if done.returncode == 0:
                return
            node.crash()
            node.boot()
        raise AssertionError(done.stdout + done.stderr)
