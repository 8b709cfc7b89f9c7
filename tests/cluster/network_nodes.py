"""Machines of a cluster, made of namespaces: each has its own network, processes, mounts and host name.

All of them hang on one bridge, see the same files, know each other's names, ask no name server, and have a /dev/shm and
a /tmp/ray of their own. A node crashes when its first process is killed, and is cut off when its cable is unplugged.
Nodes end with the process that made them, however it ends; the links that it leaves then are removed by the next one.
"""

import fcntl
import functools
import os
import shlex
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from conftest import require_tool, skip_or_fail

from moe_cluster.linux import die_with_parent

TOOLS = {"ip": "iproute2", "nsenter": "util-linux", "unshare": "util-linux"}


class Network:
    """A bridge that this machine and its nodes are on. Its name is one process's at a time."""

    def __init__(self, name: str, prefix: str) -> None:
        """`name`: of the bridge, at most 10 letters; `prefix`: the first three numbers of its addresses."""
        self.name, self.prefix = name, prefix
        self.nodes: list[Node] = []

    def __enter__(self) -> "Network":
        self._lock = (Path(tempfile.gettempdir()) / f"{self.name}.lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            pytest.fail(f"other tests use the network {self.name} now; run these when they are done")
        for left in Path("/sys/class/net").glob(f"{self.name}*"):
            _remove(left.name)
        self._folder = tempfile.TemporaryDirectory(prefix=self.name)
        names = [f"{self.prefix}.{10 + number} {self.name}{number}" for number in range(1, 10)]
        self.file("hosts", "127.0.0.1 localhost", *names)
        self.file("resolv.conf", "")
        _ip("link", "add", self.name, "type", "bridge")
        _ip("addr", "add", f"{self.prefix}.1/24", "dev", self.name)
        _ip("link", "set", self.name, "up")
        return self

    def __exit__(self, *error: object) -> None:
        for node in self.nodes:
            node.crash()
        _ip("link", "delete", self.name)
        self._folder.cleanup()
        self._lock.close()

    def file(self, name: str, *lines: str) -> Path:
        """A file of all nodes; with lines, written anew."""
        path = Path(self._folder.name) / name
        if lines:
            path.write_text("\n".join(lines) + "\n")
        return path

    def add(self, number: int) -> "Node":
        """A new node, running nothing."""
        node = Node(self, number)
        self.nodes.append(node)
        return node


class Node:
    """One machine. It exists as long as its first process does."""

    def __init__(self, network: Network, number: int) -> None:
        self.network, self.number = network, number
        self.name = f"{network.name}{number}"
        self.address = f"{network.prefix}.{10 + number}"
        self._cable = f"{network.name}v{number}"
        self._holder: subprocess.Popen[bytes] | None = None
        self.boot()

    def boot(self) -> None:
        """Start it, or start it again after a crash."""
        Path("/tmp/ray").mkdir(exist_ok=True)
        shared = [f"mount --bind {self.network.file(name)} /etc/{name}" for name in ("hosts", "resolv.conf")]
        own = [f"mount -t tmpfs none {folder}" for folder in ("/dev/shm", "/tmp/ray")]
        begin = [
            f"hostname {self.name}",
            *shared,
            *own,
            "ip link set lo up",
            "echo ready",
            "exec sleep infinity",
        ]
        script = " && ".join(begin)
        spaces = ["--net", "--pid", "--mount", "--uts", "--fork", "--kill-child", "--mount-proc"]
        self._holder = subprocess.Popen(
            ["unshare", *spaces, "sh", "-c", script],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=functools.partial(die_with_parent, os.getpid()),
        )
        assert self._holder.stdout is not None
        with self._holder.stdout as output:
            assert output.readline() == b"ready\n"
        self._plug_in()

    def command(self, words: Sequence[str]) -> list[str]:
        """The words of a command that runs `words` on this node."""
        return ["nsenter", f"--target={self._first}", "--net", "--pid", "--mount", "--uts", "--", *words]

    def run(
        self, words: Sequence[str], environment: Mapping[str, str], timeout_s: float = 90.0
    ) -> subprocess.CompletedProcess[str]:
        """Run `words` to their end, in `environment` alone."""
        return subprocess.run(
            self.command(words), env=dict(environment), capture_output=True, text=True, timeout=timeout_s
        )

    def processes(self, part: str) -> list[int]:
        """Ids, as this machine sees them, of the node's processes whose command line holds `part`."""
        space = os.readlink(f"/proc/{self._first}/ns/pid")
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and os.readlink(entry / "ns/pid") == space:
                    words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    found += [int(entry.name)] if part in words else []
            except OSError:  # it has ended meanwhile
                continue
        return sorted(found)

    def crash(self) -> None:
        """Kill every process on it at once; its network is gone with them."""
        if self._holder is not None:
            os.kill(self._first, 9)
            self._holder.wait()
            self._holder = None
            _remove(self._cable)

    def partition(self) -> None:
        """Unplug its cable; its processes live on."""
        _ip("link", "set", self._cable, "down")

    def heal(self) -> None:
        """Plug the cable in again."""
        _ip("link", "set", self._cable, "up")

    @property
    def is_plugged_in(self) -> bool:
        """Whether its cable is up."""
        return (
            "UP" in subprocess.run(["ip", "link", "show", self._cable], capture_output=True, text=True).stdout
        )

    @property
    def is_up(self) -> bool:
        """Whether it was booted and has not crashed."""
        return self._holder is not None

    @property
    def _first(self) -> int:
        assert self._holder is not None, f"{self.name} has crashed"
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text()
        return int(children.split()[0])

    def _plug_in(self) -> None:
        _ip("link", "add", self._cable, "type", "veth", "peer", "name", "eth0", "netns", str(self._first))
        _ip("link", "set", self._cable, "master", self.network.name, "up")
        inside = f"ip addr add {self.address}/24 dev eth0 && ip link set eth0 up"
        subprocess.run(self.command(["sh", "-c", inside]), check=True)


def require_namespaces() -> None:
    """Skip the test where nodes cannot be made, or fail if no test may be skipped."""
    for tool, package in TOOLS.items():
        require_tool(tool, package)
    words = ["unshare", "--net", "--pid", "--mount", "--uts", "--fork", "true"]
    probe = subprocess.run(words, capture_output=True, text=True)
    if os.geteuid() != 0 or probe.returncode != 0:
        skip_or_fail(f"namespaces need root ({probe.stderr.strip() or 'this user is not'})")


def _remove(link: str) -> None:
    """Remove a link, which the kernel may do meanwhile: a cable goes with the last process at one of its ends."""
    while Path(f"/sys/class/net/{link}").exists():
        subprocess.run(["ip", "link", "delete", link], capture_output=True)
        time.sleep(0.05)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    assert done.returncode == 0, f"{shlex.join(['ip', *words])}: {done.stderr}"
