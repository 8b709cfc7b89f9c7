"""A real Slurm on this machine for tests: a controller, and nodes that can be killed, cut off and brought back.

Each node is a slurmd in network, process, mount and host-name namespaces of its own, so node1 and node2 have their
own addresses, see only their own processes, and share the file system as nodes of a cluster do. Keys, sockets and
state lie in a private folder; nothing of a Slurm that this machine may have is touched. Root is needed.
"""

import contextlib
import functools
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from own_processes import wait_for
from slurm_accounting import Accounting
from slurm_configuration import Configuration
from slurm_network import SlurmNetwork, run

from moe_cluster.linux import die_with_parent, is_alive

# Not below /tmp: munged refuses a key or a socket in a folder that everyone may write to.
FOLDERS = Path("/run")
PREFIX = "moe-train-slurm-"
SCRATCH_MB = 16


class SlurmCluster:
    """A controller and `num_nodes` nodes, as a context manager. `environment` is what clients need to reach it."""

    def __init__(
        self, num_nodes: int = 3, accounting: bool = False, remembered_s: int = 3600, hosts: str = ""
    ) -> None:
        """`remembered_s`: how long the controller knows a job that is over. `hosts`: what stands in the name of a host
        before Slurm's name of its node."""
        self._remembered_s, self._hosts = remembered_s, hosts
        self.folder = FOLDERS / f"{PREFIX}{os.getpid()}"
        self.names = [f"node{number}" for number in range(1, num_nodes + 1)]
        self.environment = {"SLURM_CONF": str(self.folder / "slurm.conf")}
        # Other sessions on this machine have clusters of their own. The controller is outside of all namespaces.
        self._port = 16000 + 3 * (os.getpid() % 1000)
        self._network = SlurmNetwork(os.getpid(), self.names)
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        self._accounting = Accounting(self.folder, self._munge_socket, self._port + 1) if accounting else None

    def __enter__(self) -> "SlurmCluster":
        _remove_leftovers()
        with contextlib.ExitStack() as stack:
            stack.callback(self._tear_down)
            self._make_folders()
            self._network.make()
            self._start_munge()
            self._configure()
            if self._accounting:
                self._accounting.start(self.environment)
            self._start_controller()
            for name in self.names:
                self.start_node(name)
            self.wait_until_idle()
            stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._tear_down()

    # What happens to nodes.

    def crash(self, name: str) -> None:
        """Kill everything on a node at once."""
        self._nodes[name].kill()
        self._nodes[name].wait()

    def start_node(self, name: str) -> None:
        """Boot a node, in the place of one that has crashed."""
        Path("/tmp/ray").mkdir(exist_ok=True)
        shell = (
            f"hostname {self._hosts}{name}; mount --make-rprivate /; mount --bind {self.folder}/hosts /etc/hosts; "
            f"mount --bind {self.folder}/resolv.conf /etc/resolv.conf; "
            f"mount -t tmpfs -o size={SCRATCH_MB}m tmpfs {self.scratch}; mount -t tmpfs -o size=256m tmpfs /dev/shm; "
            f"mount -t tmpfs tmpfs /tmp/ray; "
            f"slurmd -D -N {name} -f {self.folder}/slurm.conf & wait; sleep infinity"
        )
        inside = [
            "unshare",
            "--uts",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount",
            "--mount-proc",
            "bash",
            "-c",
            shell,
        ]
        # Not `ip netns exec`: it mounts /sys anew, and slurmd dies without /sys/fs/cgroup.
        self._nodes[name] = self._daemon(["nsenter", f"--net={self._network.namespace(name)}", *inside], name)

    def stop_daemon(self, name: str) -> None:
        """Kill a node's slurmd alone; its jobs' processes live on."""
        os.kill(self._slurmd(name), signal.SIGKILL)
        wait_for(lambda: not self._slurmd(name), timeout_s=5)

    def cut_off(self, name: str) -> None:
        """Take a node off the network."""
        self._network.cut_off(name)

    def heal(self, name: str) -> None:
        """Give a node its network back."""
        self._network.heal(name)

    def repair(self) -> None:
        """Bring every node back as new and idle, without jobs."""
        self.call("scancel", "--user=root")
        for name in self.names:
            self.heal(name)
            if not is_alive(self._nodes[name].pid) or not self._slurmd(name):
                self.crash(name)
                self.start_node(name)
            else:
                self.inside(name, "find", str(self.scratch), "-mindepth", "1", "-delete")
        wait_for(lambda: self.call("squeue", "--noheader") == "", timeout_s=60)
        self.wait_until_idle()

    @property
    def scratch(self) -> Path:
        """A small disk that each node has for itself, under the same path."""
        return self.folder / "scratch"

    def inside(self, name: str, *command: str) -> str:
        """What a command says that runs on a node with a slurmd."""
        pid = self._slurmd(name)
        return run("nsenter", f"--target={pid}", "--mount", "--pid", "--net", "--uts", *command)

    def processes(self, name: str) -> dict[int, str]:
        """Command lines of a node's processes by the ids that this machine knows them by."""
        namespace = os.readlink(f"/proc/{self._slurmd(name)}/ns/pid")
        found = {}
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and os.readlink(entry / "ns/pid") == namespace:
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    @contextlib.contextmanager
    def without_answers(self) -> Iterator[None]:
        """The controller is there, and says nothing."""
        process = self._daemons[-1]
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)

    # What clients ask.

    def call(self, *command: str) -> str:
        """The output of a Slurm client, which must succeed."""
        return run(*command, environment=self.environment)

    def wait_until_idle(self) -> None:
        """Return once every node has run something: the controller is late to notice a node that is gone."""
        everywhere = ["srun", f"--nodes={len(self.names)}", "--exclusive", "true"]

        def answer() -> bool:
            self._resume_nodes()
            with contextlib.suppress(subprocess.TimeoutExpired):
                surroundings = {**os.environ, **self.environment}
                return (
                    subprocess.run(everywhere, env=surroundings, capture_output=True, timeout=10).returncode
                    == 0
                )
            return False

        wait_for(answer, every_s=0.2, timeout_s=90)

    def _resume_nodes(self) -> None:
        """Slurm holds a node that came back too early for one that cannot be trusted."""
        for name in self.names:
            command = ["scontrol", "update", f"NodeName={name}", "State=RESUME"]
            subprocess.run(command, env={**os.environ, **self.environment}, capture_output=True, check=False)

    # How it is built.

    def _make_folders(self) -> None:
        for part in ("run", "state", "log", "munge", "scratch", *(f"spool/{name}" for name in self.names)):
            (self.folder / part).mkdir(parents=True)
        known = {"localhost": "127.0.0.1", "controller": self._network.controller, **self._network.addresses}
        known |= {f"{self._hosts}{name}": address for name, address in self._network.addresses.items()}
        (self.folder / "hosts").write_text("".join(f"{address} {name}\n" for name, address in known.items()))
        (self.folder / "resolv.conf").touch()  # one name server that is not there costs 10 s a question

    def _start_munge(self) -> None:
        folder = self.folder / "munge"
        (folder / "key").write_bytes(secrets.token_bytes(1024))
        (folder / "key").chmod(0o400)
        files = [f"--key-file={folder}/key", f"--socket={self._munge_socket}", f"--pid-file={folder}/pid"]
        files += [f"--log-file={folder}/log", f"--seed-file={folder}/seed", "--num-threads=2"]
        self._daemons.append(self._daemon(["munged", "--foreground", *files], "munged"))
        wait_for(self._munge_socket.exists, timeout_s=10)

    @property
    def _munge_socket(self) -> Path:
        return self.folder / "munge/socket"

    def _configure(self) -> None:
        Configuration(
            folder=self.folder,
            address=self._network.controller,
            port=self._port,
            nodes=self._network.addresses,
            remembered_s=self._remembered_s,
            accounting=self._accounting.configuration if self._accounting else (),
        ).write()

    def _start_controller(self) -> None:
        shell = f"hostname controller; exec slurmctld -D -c -f {self.folder}/slurm.conf"
        self._daemons.append(self._daemon(["unshare", "--uts", "bash", "-c", shell], "slurmctld"))

    def _daemon(self, command: list[str], name: str) -> "subprocess.Popen[bytes]":
        with (self.folder / f"log/{name}.out").open("ab") as log:
            return subprocess.Popen(
                command,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=functools.partial(die_with_parent, os.getpid()),
            )

    def _slurmd(self, name: str) -> int:
        """Process id of a node's slurmd; 0 if it has none."""
        inner = _children(_children(self._nodes[name].pid)[:1] and _children(self._nodes[name].pid)[0])
        return next((pid for pid in inner if _command(pid) == "slurmd" and is_alive(pid)), 0)

    def _tear_down(self) -> None:
        for process in (*self._nodes.values(), *reversed(self._daemons)):
            process.kill()
            process.wait()
        if self._accounting:
            self._accounting.stop()
        self._network.remove()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def in_environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables of this process for as long as the block lasts."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def missing() -> str:
    """Why there can be no cluster here; empty if there can be one."""
    programs = {"slurmctld": "slurm-wlm", "munged": "munge", "ip": "iproute2", "unshare": "util-linux"}
    absent = [package for program, package in programs.items() if shutil.which(program) is None]
    if absent:
        return f"a Slurm for tests needs the Debian packages {', '.join(absent)}"
    if os.geteuid() != 0:
        return "a Slurm for tests needs root, for network namespaces"
    able = subprocess.run(
        ["unshare", "--net", "--pid", "--fork", "--mount", "true"], check=False, capture_output=True
    )
    return "" if able.returncode == 0 else f"there can be no namespaces here: {able.stderr.decode().strip()}"


def _children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in path.read_text().split()] if pid and path.exists() else []


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def _remove_leftovers() -> None:
    """What sessions that were killed have left on this machine."""
    for folder in FOLDERS.glob(f"{PREFIX}*"):
        pid = int(folder.name.removeprefix(PREFIX))
        if not is_alive(pid):
            SlurmNetwork(pid, []).remove()
            shutil.rmtree(folder, ignore_errors=True)
