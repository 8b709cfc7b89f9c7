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
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from own_processes import wait_for
from slurm_accounting import Accounting

from moe_cluster.linux import die_with_parent, is_alive

# Not below /tmp: munged refuses a key or a socket in a folder that everyone may write to.
FOLDERS = Path("/run")
PREFIX = "moe-train-slurm-"
CPUS, MEMORY_MB, GPUS = 4, 4000, 2
SCRATCH_MB = 16
CONFIGURATION = """\
ClusterName=test
SlurmctldHost=controller({address})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
SlurmctldPort={port}
SlurmdPort=16818
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdTimeout=6
SlurmctldTimeout=6
InactiveLimit=0
KillWait=15
MinJobAge={remembered_s}
JobRequeue=1
MessageTimeout=5
AccountingStorageType=accounting_storage/{accounting}
GresTypes=gpu
DefMemPerCPU=200
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
"""


class SlurmCluster:
    """A controller and `num_nodes` nodes, as a context manager. `environment` is what clients need to reach it."""

    def __init__(self, num_nodes: int = 3, accounting: bool = False, remembered_s: int = 3600) -> None:
        """`remembered_s`: how long the controller knows a job that is over."""
        self._remembered_s = remembered_s
        self.folder = FOLDERS / f"{PREFIX}{os.getpid()}"
        self.names = [f"node{number}" for number in range(1, num_nodes + 1)]
        self.environment = {"SLURM_CONF": str(self.folder / "slurm.conf")}
        # Other sessions on this machine have clusters of their own. The controller is outside of all namespaces.
        self._port = 16000 + 3 * (os.getpid() % 1000)
        self._network, self._tag = f"10.77.{os.getpid() % 250 + 1}", f"mts{os.getpid() % 100000}"
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        self._accounting = Accounting(self.folder, self._munge_socket, self._port + 1) if accounting else None

    def __enter__(self) -> "SlurmCluster":
        _remove_leftovers()
        with contextlib.ExitStack() as stack:
            stack.callback(self._tear_down)
            self._make_folders()
            self._make_network()
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
            f"hostname {name}; mount --make-rprivate /; mount --bind {self.folder}/hosts /etc/hosts; "
            f"mount --bind {self.folder}/resolv.conf /etc/resolv.conf; "
            f"mount -t tmpfs -o size={SCRATCH_MB}m tmpfs {self.scratch}; mount -t tmpfs -o size=256m tmpfs /dev/shm; "
            f"mount -t tmpfs tmpfs /tmp/ray; "
            f"slurmd -D -N {name} -f {self.folder}/slurm.conf & wait"
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
        self._nodes[name] = self._daemon(["nsenter", f"--net=/run/netns/{self._tag}{name}", *inside], name)

    def stop_daemon(self, name: str) -> None:
        """Kill a node's slurmd alone; its jobs' processes live on."""
        os.kill(self._slurmd(name), signal.SIGKILL)

    def cut_off(self, name: str) -> None:
        """Take a node off the network."""
        _run("ip", "link", "set", self._link(name), "down")

    def heal(self, name: str) -> None:
        """Give a node its network back."""
        _run("ip", "link", "set", self._link(name), "up")

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
        """What a command says that runs on a node."""
        pid = self._slurmd(name)
        return _run("nsenter", f"--target={pid}", "--mount", "--pid", "--net", "--uts", *command)

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
        return _run(*command, environment=self.environment)

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
        addresses = {"localhost": "127.0.0.1", "controller": f"{self._network}.1"}
        addresses |= {name: self._address(name) for name in self.names}
        lines = [f"{address} {name}\n" for name, address in addresses.items()]
        (self.folder / "hosts").write_text("".join(lines))
        (self.folder / "resolv.conf").write_text(
            ""
        )  # one name server that is not there costs 10 s a question

    def _make_network(self) -> None:
        bridge = self._tag
        _run("ip", "link", "add", bridge, "type", "bridge")
        _run("ip", "addr", "add", f"{self._network}.1/24", "dev", bridge)
        _run("ip", "link", "set", bridge, "up")
        for name in self.names:
            space, link = f"{self._tag}{name}", self._link(name)
            _run("ip", "netns", "add", space)
            _run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
            _run("ip", "link", "set", link, "master", bridge, "up")
            _run("ip", "-n", space, "addr", "add", f"{self._address(name)}/24", "dev", "eth0")
            _run("ip", "-n", space, "link", "set", "eth0", "up")
            _run("ip", "-n", space, "link", "set", "lo", "up")
            _run("ip", "-n", space, "route", "add", "default", "via", f"{self._network}.1")

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
        kind = "slurmdbd" if self._accounting else "none"
        address = f"{self._network}.1"
        values = {
            "folder": self.folder,
            "address": address,
            "accounting": kind,
            "port": self._port,
            "remembered_s": self._remembered_s,
        }
        lines = [CONFIGURATION.format(**values)]
        lines += self._accounting.configuration if self._accounting else []
        gres = ["AutoDetect=off\n"]
        for name in self.names:
            shape = f"CPUs={CPUS} Boards=1 SocketsPerBoard=1 CoresPerSocket={CPUS} ThreadsPerCore=1"
            place = f"NodeAddr={self._address(name)} NodeHostname={name} Port=16818"
            lines.append(
                f"NodeName={name} {place} {shape} RealMemory={MEMORY_MB} Gres=gpu:{GPUS} State=UNKNOWN\n"
            )
            for number in range(GPUS):  # Slurm takes a device only; /dev/null is 1, 3
                os.mknod(self.folder / f"spool/gpu-{name}-{number}", 0o600 | 0o020000, os.makedev(1, 3))
            gres.append(f"NodeName={name} Name=gpu File={self.folder}/spool/gpu-{name}-[0-{GPUS - 1}]\n")
        everyone = f"Nodes={','.join(self.names)} MaxTime=INFINITE State=UP"
        lines.append(f"PartitionName=main {everyone} Default=YES PriorityTier=10 GraceTime=10\n")
        lines.append(f"PartitionName=urgent {everyone} PriorityTier=100 PreemptMode=off\n")
        (self.folder / "slurm.conf").write_text("".join(lines))
        (self.folder / "gres.conf").write_text("".join(gres))

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
        return next((pid for pid in inner if _command(pid).startswith("slurmd")), 0)

    def _address(self, name: str) -> str:
        return f"{self._network}.{11 + self.names.index(name)}"

    def _link(self, name: str) -> str:
        return f"{self._tag}v{1 + self.names.index(name)}"

    def _tear_down(self) -> None:
        for process in (*self._nodes.values(), *reversed(self._daemons)):
            process.kill()
            process.wait()
        if self._accounting:
            self._accounting.stop()
        _remove(self.folder, self._tag)


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


def _run(*command: str, environment: dict[str, str] | None = None) -> str:
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


def _children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in path.read_text().split()] if pid and path.exists() else []


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text()


def _remove_leftovers() -> None:
    """What sessions that were killed have left on this machine."""
    for folder in FOLDERS.glob(f"{PREFIX}*"):
        pid = int(folder.name.removeprefix(PREFIX))
        if not is_alive(pid):
            _remove(folder, f"mts{pid % 100000}")


def _remove(folder: Path, tag: str) -> None:
    for space in Path("/run/netns").glob(f"{tag}node*"):
        subprocess.run(["ip", "netns", "del", space.name], check=False)
    if tag in [name for _, name in socket.if_nameindex()]:
        subprocess.run(["ip", "link", "del", tag], check=False)
    time.sleep(0.1)
    shutil.rmtree(folder, ignore_errors=True)
