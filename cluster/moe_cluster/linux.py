"""Wraps Linux calls that keep a tree of processes together (parent-death signals, adopted orphans) and describe a host.

torch elastic gives every worker its own session, so no process group holds them all. A launcher that adopts orphans
finds every descendant, however deep, among its own children once the processes between are dead.
"""

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import struct
import time
from collections.abc import Iterable
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
SIOCGIFADDR = 0x8915
POLL_S = 0.05


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}, {value}): {os.strerror(code)}")


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent dies; end at once if `parent` is already gone."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if not is_alive(parent):
        os._exit(1)


def start_deaf(parent: int, numbers: Iterable[int]) -> None:
    """Prepare a new process before it runs its program: it ignores these signals until the program handles them,
    because a cluster sends them to all processes of a job, even while they start; and it dies with its parent."""
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)
    die_with_parent(parent)


def stop_signals() -> tuple[signal.Signals, ...]:
    """Returns the signals that ask a process to stop; SIGHUP is one of them unless nohup ignores it."""
    hang_up = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
    return (signal.SIGINT, signal.SIGTERM, *hang_up)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def is_alive(pid: int) -> bool:
    """Returns whether a process with this id exists and is not a zombie."""
    fields = _stat(pid)
    return fields is not None and fields[0] != "Z"


def start_time(pid: int) -> int:
    """Returns when a process started, in clock ticks since boot; 0 if no process has this id."""
    fields = _stat(pid)
    return int(fields[19]) if fields is not None else 0


STATES = {
    "T": "is stopped (SIGSTOP)",
    "t": "is stopped by a debugger",
    "D": "waits for a disk or a file system that does not answer",
    "Z": "has ended",
    "R": "computes and holds Python's lock",
    "S": "sleeps and holds Python's lock",
}


def state_of(pid: int) -> str:
    """Describes the state of a process of this host that has no heartbeat."""
    fields = _stat(pid)
    return (
        f"process {pid} {'is gone' if fields is None else STATES.get(fields[0], 'is in state ' + fields[0])}"
    )


def catches(pid: int, number: int) -> bool:
    """Returns whether a process of this host is alive and has a handler for this signal."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return False
    caught = next((line.split()[1] for line in lines if line.startswith("SigCgt:")), "0")
    return bool(int(caught, 16) >> (number - 1) & 1)


def address_of(interface: str) -> str | None:
    """Returns the IPv4 address of a network interface of this host; None if it has none or does not exist."""
    question = struct.pack("256s", interface.encode()[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            answer = fcntl.ioctl(any_socket.fileno(), SIOCGIFADDR, question)
        except OSError:
            return None
    return socket.inet_ntoa(answer[20:24])


def interface_of(address: str) -> str:
    """Returns the network interface with this IPv4 address, or "". Unless gloo is given one, it uses that of the host's
    name, often 127.0.1.1."""
    return next((name for _, name in socket.if_nameindex() if address_of(name) == address), "")


def family_of(address: str) -> socket.AddressFamily:
    """Returns the family of a numeric address, IPv4 or IPv6."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def free_port(address: str) -> int:
    """Returns a free port of an address of this host; it is not reserved."""
    with socket.socket(family_of(address)) as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def children(parent: int) -> set[int]:
    """Returns the ids of the processes whose parent is `parent`, zombies included."""
    pids = set()
    for entry in Path("/proc").iterdir():
        fields = _stat(int(entry.name)) if entry.name.isdigit() else None
        if fields is not None and int(fields[1]) == parent:
            pids.add(int(entry.name))
    return pids


def end_children(keep: set[int], patience_s: float) -> None:
    """Wait for all children of this process but `keep`; kill those that live after `patience_s` seconds."""
    deadline = time.monotonic() + patience_s
    while left := children(os.getpid()) - keep:
        for pid in left:
            if time.monotonic() >= deadline:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        time.sleep(POLL_S)


def _stat(pid: int) -> list[str] | None:
    """Returns state, parent, ... of a process; its name, which comes before, may contain spaces and brackets."""
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
    except (FileNotFoundError, ProcessLookupError):
        return None
