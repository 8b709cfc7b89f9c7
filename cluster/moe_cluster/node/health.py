"""What a node is like before work begins on it: disk, clock, memory, name, GPUs, versions; and what is wrong with it.

    python -P -m moe_cluster.node.health --run-dir DIR [--json]           # this node
    python -P -m moe_cluster.node.health --compare node1.json node2.json  # problems of all, and where they differ

Workers report it of their nodes at their start (`preflight.py`); a launcher or a person may ask before. What is wrong
is decided in `health_rules.py`.
"""

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from moe_cluster.contract import DONE, FAILED
from moe_cluster.node.bad_nodes import own_name
from moe_cluster.node.nvml import Gpu, gpus
from moe_cluster.output import run_main
from moe_cluster.own_code import PACKAGES

GIB = 2**30
SOURCES = (".py", ".cu", ".cuh", ".cpp", ".h")
XID_SIGN = "NVRM: Xid"
SHM = Path("/dev/shm")


@dataclass(frozen=True)
class Report:
    """One node, as `--json` writes it. None: it cannot be known here."""

    host: str
    address: str | None
    """What the host's own name stands for, where workers of other nodes look for it."""
    interface: str | None
    """GLOO_SOCKET_IFNAME, which goes before that address."""
    can_listen: bool
    run_dir_free_gib: float | None
    """None: the folder cannot be written."""
    tmp_free_gib: float
    shm_free_gib: float | None
    memory_free_gib: float
    clock_ahead_s: float | None
    """Of the clock of whoever stores the run folder."""
    gpus: list[Gpu]
    gpu_note: str
    """Why there is none."""
    xids: list[str]
    """What NVIDIA's driver wrote to the kernel's log, where that can be read."""
    versions: dict[str, str | None] = field(default_factory=dict)
    """Of python, torch and moe-train, its commit and a digest of its code."""


def report(run_dir: Path, now: Callable[[], float] = time.time, is_alone: bool = False) -> Report:
    """This node, seen from this process; writes and removes a small file in `run_dir`. `now`: the clock to judge.

    `is_alone`: without what is only compared with other nodes, and without a look for GPUs' faults where there is no
    GPU. It takes milliseconds then, and asks no name server.
    """
    found, note = gpus()
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
        gpus=found,
        gpu_note=note,
        xids=_xids() if found or not is_alone else [],
        versions={} if is_alone else versions(),
    )


def read(text: str) -> Report:
    """A report from the JSON of `--json`. Raises ValueError, KeyError or TypeError for anything else."""
    content = json.loads(text)
    return Report(**{**content, "gpus": [Gpu(**gpu) for gpu in content["gpus"]]})


def versions() -> dict[str, str | None]:
    """What must be the same on all nodes, without importing any of it."""
    return {
        "python": platform.python_version(),
        "torch": _installed("torch"),
        "moe-train": _installed("moe-train"),
        "commit": _commit(),
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
    """A file gets its time from whoever stores it: on a shared folder, from the one clock that all nodes see."""
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
    found = []
    with suppress(OSError):  # only root may read it, and in a container nobody
        log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        try:
            for record in _records(log):
                if XID_SIGN in record:
                    found.append(record.partition(";")[2].strip())
        finally:
            os.close(log)
    return found


def _records(log: int) -> Iterator[str]:
    while True:
        try:
            yield os.read(log, 8192).decode(errors="replace")
        except BrokenPipeError:  # it was overwritten while we read: go on with the next
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
    """Of the text of our packages: changed files, too, must be the same everywhere."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        for place in spec.submodule_search_locations or () if spec else ():
            files = (path for path in Path(place).rglob("*") if path.suffix in SOURCES)
            for path in sorted(files):
                digest.update(f"{package}/{path.relative_to(place)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report of this node, or the problems of several; FAILED if there is one that keeps a run from going."""
    from moe_cluster.node.health_rules import problems

    parser = argparse.ArgumentParser(
        allow_abbrev=False, prog="python -P -m moe_cluster.node.health", description=__doc__
    )
    parser.add_argument("--run-dir", type=Path, default=Path())
    parser.add_argument("--json", action="store_true", help="print the report as one line of JSON")
    parser.add_argument(
        "--compare", type=Path, nargs="+", metavar="FILE", help="reports of --json, one a file"
    )
    options = parser.parse_args(argv)
    if options.json:
        print(json.dumps(asdict(report(options.run_dir))))
        return DONE
    reports = [read(path.read_text()) for path in options.compare or ()] or [report(options.run_dir)]
    found = problems(reports)
    for problem in found:
        print(f"{'error' if problem.is_fatal else 'warning'}: {problem}")
    if not found:
        print(f"{', '.join(one.host for one in reports)}: nothing found")
    return FAILED if any(problem.is_fatal for problem in found) else DONE


if __name__ == "__main__":
    sys.exit(run_main(main))
