"""Finds the problems of nodes: of each by itself, and where they differ but must not."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from moe_cluster.node.condition import Report
from moe_cluster.node.nvml import Gpu

LEAST_RUN_DIR_GIB, LEAST_TMP_GIB, LEAST_SHM_GIB, LEAST_MEMORY_GIB = 1.0, 0.25, 0.25, 1.0
MOST_CLOCK_S = 2.0
SAME = ("python", "torch", "moe-train", "code")
"""Versions that must be equal; the code's digest also covers uncommitted changes."""
XID = re.compile(r"Xid \([^)]*\): (\d+)")
HARDWARE_XIDS = {48, 64, 74, 79, 92, 94, 95, 119, 120, 140}
"""The driver's error numbers for faults of the GPU or its links, not of a program."""


class About(Enum):
    """Lists the parts of a node that a run may not need."""

    ROOM = "room"
    PORT = "port"
    GPU = "gpu"


@dataclass(frozen=True)
class Problem:
    """Describes one problem of one node, or of several."""

    text: str
    is_fatal: bool = False
    """Whether it keeps a run from starting."""
    host: str = ""
    """The node; empty if it concerns several nodes together."""
    about: About | None = None
    """The part of the node, if a run may not need it."""

    def __str__(self) -> str:
        return self.text

    @property
    def why(self) -> str:
        """Returns the sentence without its node."""
        return self.text.removeprefix(f"{self.host}: ")


def problems(reports: Sequence[Report]) -> list[Problem]:
    """Returns all problems of the nodes."""
    alone = [
        replace(problem, host=report.host)
        for report in reports
        for problem in _of_node(report, len(reports) > 1)
    ]
    return [*alone, *_differing_versions(reports), *_differing_gpus(reports)]


def problems_alone(report: Report, workers: int, uses_gpus: bool) -> list[Problem]:
    """Returns the problems of the only node of a run. Only what the run needs is fatal, because there may be no better
    node.

    It needs a port if there are several workers, and every GPU if all are used, but no room in /dev/shm or on a disk.
    """
    needed: set[About | None] = {None}
    if workers > 1:
        needed.add(About.PORT)
    if uses_gpus and workers >= len(report.gpus):
        needed.add(About.GPU)
    exchanged = report if workers > 1 else replace(report, shm_free_gib=None)
    return [
        replace(problem, host=report.host, is_fatal=problem.is_fatal and problem.about in needed)
        for problem in _of_node(exchanged, has_others=False)
    ]


def _of_node(report: Report, has_others: bool) -> Iterator[Problem]:
    host = report.host
    if report.run_dir_free_gib is None:
        yield Problem(f"{host}: the run folder cannot be written; mount it there, or exclude the node", True)
    elif report.run_dir_free_gib < LEAST_RUN_DIR_GIB:
        yield _low(
            host, "the run folder's disk", report.run_dir_free_gib, LEAST_RUN_DIR_GIB, "remove old runs"
        )
    if report.tmp_free_gib < LEAST_TMP_GIB:
        yield _low(
            host, "the disk of temporary files", report.tmp_free_gib, LEAST_TMP_GIB, "clear it or set TMPDIR"
        )
    if report.shm_free_gib is not None and report.shm_free_gib < LEAST_SHM_GIB:
        out = "give the container more (--shm-size), or use moe.dispatch.kind=all_to_all"
        yield _low(
            host, "/dev/shm, through which workers exchange rows,", report.shm_free_gib, LEAST_SHM_GIB, out
        )
    if report.memory_free_gib < LEAST_MEMORY_GIB:
        yield _low(host, "its memory", report.memory_free_gib, LEAST_MEMORY_GIB, "end what else runs there")
    if report.clock_ahead_s is not None and abs(report.clock_ahead_s) > MOST_CLOCK_S:
        side = "ahead of" if report.clock_ahead_s > 0 else "behind"
        yield Problem(
            f"{host}: its clock is {abs(report.clock_ahead_s):.0f} s {side} that of the run folder's server; set NTP, "
            "or exclude the node"
        )
    if not report.can_listen:
        yield Problem(
            f"{host}: no port can be opened; raise its limit of open files, or exclude it",
            True,
            about=About.PORT,
        )
    if has_others and report.interface is None and (report.address or "127.").startswith("127."):
        yield Problem(
            f"{host}: its own name resolves to {report.address or 'no address'}, at which no other node finds it; "
            "correct /etc/hosts, or set GLOO_SOCKET_IFNAME (and NCCL_SOCKET_IFNAME) to its network interface"
        )
    for gpu in report.gpus:
        yield from _of_gpu(host, gpu)
    for line in report.xids:
        found = XID.search(line)
        if found and int(found[1]) in HARDWARE_XIDS:
            yield Problem(f"{host}: the GPU driver has reported since boot: {line}; test its GPUs")


def _low(host: str, what: str, gib: float, least: float, way_out: str) -> Problem:
    return Problem(
        f"{host}: {what} has {gib:.2f} GiB left, less than {least:g} GiB; {way_out}",
        is_fatal=gib == 0,
        about=About.ROOM,
    )


def _of_gpu(host: str, gpu: Gpu) -> Iterator[Problem]:
    name = f"{host}: GPU {gpu.index}"
    if gpu.error is not None:
        yield Problem(
            f"{name} does not answer ({gpu.error}); reset it, or exclude the node", True, about=About.GPU
        )
    if gpu.is_worn:
        yield Problem(
            f"{name} has faulty memory that it cannot replace; exclude the node", True, about=About.GPU
        )
    if gpu.needs_reset:
        yield Problem(f"{name} has faulty memory that is replaced at a reset; reset it")
    if gpu.ecc_errors:
        yield Problem(
            f"{name} has had {gpu.ecc_errors} uncorrected memory errors since its driver was loaded; reset it"
        )
    if gpu.temperature_c is not None and gpu.slowdown_c is not None and gpu.temperature_c >= gpu.slowdown_c:
        yield Problem(
            f"{name} is at {gpu.temperature_c} C and slows down at {gpu.slowdown_c} C; check its cooling"
        )


def _differing_versions(reports: Sequence[Report]) -> Iterator[Problem]:
    for name in SAME:
        hosts = defaultdict(list)
        for report in reports:
            hosts[_version(report, name)].append(report.host)
        if len(hosts) > 1:
            yield Problem(
                f"{name} differs: {_shown(hosts)}; install the same version on all nodes, e.g. in a shared folder",
                is_fatal=True,
            )


def _version(report: Report, name: str) -> str:
    version = report.versions.get(name) or "none"
    commit = report.versions.get("commit") if name == "code" else None
    return f"{version} (commit {commit[:8]})" if commit else version


def _differing_gpus(reports: Sequence[Report]) -> Iterator[Problem]:
    hosts = defaultdict(list)
    for report in reports:
        kinds = sorted({gpu.name or "unknown" for gpu in report.gpus})
        hosts[f"{len(report.gpus)} x {', '.join(kinds)}" if kinds else "no GPU"].append(report.host)
    if len(hosts) > 1:
        yield Problem(
            f"GPUs differ: {_shown(hosts)}; the slowest node sets the pace, and one without GPUs may fail"
        )


def _shown(hosts: dict[str, list[str]]) -> str:
    """Lists the values with their hosts, the most frequent first: "2.13.0 on node1, node3; 2.12.0 on node2"."""
    ordered = sorted(hosts.items(), key=lambda entry: -len(entry[1]))
    return "; ".join(f"{value} on {', '.join(names)}" for value, names in ordered)
