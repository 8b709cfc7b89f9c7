"""Reports the condition of a node: disks, clock, memory, name, GPUs and versions.

Workers report their nodes at their start (`preflight.py`), and `health.py` does so for a user. `health_rules.py`
decides what is a problem.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from moe_cluster.node.bad_nodes import own_name
from moe_cluster.node.nvml import Gpu, gpus
from moe_cluster.own_code import PACKAGES

GIB = 2**30
SOURCES = (".py", ".cu", ".cuh", ".cpp", ".h")
XID_SIGN = "NVRM: Xid"
SHM = Path("/dev/shm")


@dataclass(frozen=True)
class Report:
    """Describes one node, as `--json` writes it. None: unknown."""

    host: str
    address: str | None
    """The address of the host's own name, where workers of other nodes look for it."""
    interface: str | None
    """GLOO_SOCKET_IFNAME, which takes precedence over that address."""
    can_listen: bool
    run_dir_free_gib: float | None
    """None: the folder cannot be written."""
    tmp_free_gib: float
    shm_free_gib: float | None
    memory_free_gib: float
    clock_ahead_s: float | None
    """Compared with the clock of the server that stores the run folder."""
    gpus: list[Gpu]
    gpu_note: str
    """The reason if there is none."""
    xids: list[str]
    """Messages of NVIDIA's driver in the kernel's log, if that is readable."""
    versions: dict[str, str | None] = field(default_factory=dict)
    """Versions of python, torch and moe-train, its commit and a digest of its code."""


def report(run_dir: Path, now: Callable[[], float] = time.time, is_alone: bool = False) -> Report:
    """Report this node as this process sees it, using a temporary file in `run_dir`. `now`: the clock to check.

    `is_alone`: skip what is only compared with other nodes, and faults of GPUs if there is no GPU. It then takes
    milliseconds, and asks no name server.
    """
    devices, note = gpus()
    return Report(
        host=own_name(),
        address=None if is_alone else _address(),
        interface=os.environ.get("GLOO_SOCKET_IFNAME"),
        can_listen=_can_listen(),
        run_dir_free_gib=_free_gib(run_dir),
        tmp_free_gib=_tmp_free_gib(),
        shm_free_gib=_free_gib(SHM),
        memory_free_gib=_memory_free_gib(),
        clock_ahead_s=_clock_ahead(run_dir, now),
        gpus=devices,
        gpu_note=note,
        xids=_xids() if devices or not is_alone else [],
        versions={} if is_alone else {**versions(), "commit": _commit()},
    )


def read(text: str) -> Report:
    """Parse the JSON of `--json`. Raises ValueError, KeyError or TypeError for anything else."""
    content = json.loads(text)
    return Report(**{**content, "gpus": [Gpu(**gpu) for gpu in content["gpus"]]})


def versions(packages: Iterable[str] = ()) -> dict[str, str | None]:
    """Returns the versions that must be equal on all nodes, also of further `packages`, without importing them."""
    return {
        "python": platform.python_version(),
        **{name: _installed(name) for name in ("torch", "moe-train", *packages)},
        "code": _digest(),
    }


def _address() -> str | None:
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return None


def _can_listen() -> bool:
    with socket.socket() as listener:
        try:
            listener.bind(("", 0))
            listener.listen()
        except OSError:
            return False
        return True


def _free_gib(folder: Path) -> float | None:
    if not os.access(folder, os.W_OK):
        return None
    return shutil.disk_usage(folder).free / GIB


def _tmp_free_gib() -> float:
    try:
        return _free_gib(Path(tempfile.gettempdir())) or 0.0
    except FileNotFoundError:  # no folder for them takes a file
        return 0.0


def _memory_free_gib() -> float:
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    kib = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    return kib * 1024 / GIB


def _clock_ahead(run_dir: Path, now: Callable[[], float]) -> float | None:
    """Compare the clock with a new file's time, which on a shared folder comes from one server for all nodes."""
    probe = run_dir / f".clock-{socket.gethostname()}-{os.getpid()}"
    try:
        before = now()
        probe.write_text("")
        after = now()
        stored = probe.stat().st_mtime
        probe.unlink()
    except OSError:
        return None
    return (before + after) / 2 - stored


def _xids() -> list[str]:
    messages = []
    with suppress(OSError):  # only root may read it, and in a container nobody
        log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        try:
            for record in _records(log):
                if XID_SIGN in record:
                    messages.append(record.partition(";")[2].strip())
        finally:
            os.close(log)
    return messages


def _records(log: int) -> Iterator[str]:
    while True:
        try:
            yield os.read(log, 8192).decode(errors="replace")
        except BrokenPipeError:  # overwritten while we read: continue with the next
            continue
        except BlockingIOError:
            return


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git here, or no repository
        return None


def _digest() -> str:
    """Returns a digest of the source of our packages: changed files must be equal on all nodes too."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        for place in spec.submodule_search_locations or () if spec else ():
            files = (path for path in Path(place).rglob("*") if path.suffix in SOURCES)
            for path in sorted(files):
                digest.update(f"{package}/{path.relative_to(place)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]
