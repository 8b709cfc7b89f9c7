"""Starts, stops and reaps torch elastic for the workers of one host, on a laptop or on a node of a cluster.

torch elastic runs in its own session, so a Ctrl-C at the terminal reaches only the launcher, which asks the workers to
stop. If the launcher is killed, the kernel kills torch elastic and then each worker.
"""

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from moe_cluster.contract import ATTEMPT_VARIABLE, FAILED, HEARTBEAT_FILE, LAUNCHER_VARIABLE, attempt_dir
from moe_cluster.job import Attempt
from moe_cluster.linux import adopt_orphans, children, end_children, interface_of, start_deaf
from moe_cluster.own_code import module_command, with_own_code
from moe_cluster.stop import StopRequest

LOOPBACK = "127.0.0.1"
"""The workers of one host rendezvous at this address, so that no host name has to resolve."""
POLL_S = 0.1
FORWARD_EVERY_S = 1.0
"""Seconds between two reads of the heartbeats of workers without a stop signal, from a shared file system."""
ORPHAN_PATIENCE_S = 2.0
# A cluster sends its signals to every process of a job. torch elastic would end the workers before they have saved, and
# a worker that is still starting would die; so both ignore them, and a worker gets the signal once it handles it.
IGNORED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def elastic_command(attempt: Attempt, num_workers: int, rendezvous: Sequence[str]) -> list[str]:
    """Returns the command that starts this host's workers; `rendezvous` has the options by which hosts meet."""
    own = ["--max-restarts", "0", "--signals-to-handle", "SIGQUIT", "--nproc-per-node", str(num_workers)]
    python, *words = module_command(attempt.module, *attempt.arguments)
    # torch elastic's own `-m` would take a module of the working directory.
    worker = ["--no-python", python, "-u", *words]
    return module_command("torch.distributed.run", *rendezvous, *own, *worker)


def on_loopback(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment of workers on this host alone: gloo uses loopback, unless the user names an interface."""
    interface = interface_of(LOOPBACK)
    return {**({"GLOO_SOCKET_IFNAME": interface} if interface else {}), **environment}


def has_begun(attempt: Attempt) -> bool:
    """Returns whether a worker of the attempt, on any host, has a heartbeat."""
    return any(attempt_dir(attempt.run_dir, attempt.number).glob(f"rank-*/{HEARTBEAT_FILE}"))


def with_threads(environment: Mapping[str, str], num_workers: int) -> dict[str, str]:
    """Returns the environment of `num_workers` on this host: without OMP_NUM_THREADS each gets an equal share of its
    cores."""
    threads = environment.get("OMP_NUM_THREADS") or max(1, len(os.sched_getaffinity(0)) // num_workers)
    return {**environment, "OMP_NUM_THREADS": str(threads)}


def run_elastic(
    command: Sequence[str],
    attempt: Attempt,
    environment: Mapping[str, str],
    log: Path,
    stop: StopRequest,
    must_end: Callable[[], bool] = lambda: False,
) -> int:
    """Run `command` to its end with its output in `log`, and leave no process behind; returns its exit code.

    `must_end` is polled; if it returns True everything is killed, and FAILED is returned. Counts every new child of
    this process as the attempt's. Raises KeyboardInterrupt when `stop` becomes urgent.
    """
    adopt_orphans()
    strangers = children(os.getpid())
    with log.open("w", encoding="utf-8") as file:
        elastic = _start(command, attempt, environment, file.fileno())
        try:
            return _wait(elastic, attempt, stop, must_end)
        finally:
            _end(elastic, strangers)


def _start(
    command: Sequence[str], attempt: Attempt, environment: Mapping[str, str], log: int
) -> "subprocess.Popen[bytes]":
    own = {ATTEMPT_VARIABLE: str(attempt.number), LAUNCHER_VARIABLE: str(os.getpid())}
    return subprocess.Popen(
        command,
        env={**with_own_code(environment), **attempt.environment, **own},
        stdin=subprocess.DEVNULL,
        stderr=log,
        start_new_session=True,
        preexec_fn=functools.partial(start_deaf, os.getpid(), IGNORED),
    )


def _wait(
    elastic: "subprocess.Popen[bytes]", attempt: Attempt, stop: StopRequest, must_end: Callable[[], bool]
) -> int:
    settled: set[Path] = set()
    next_look = 0.0
    while True:
        if stop.is_urgent:
            raise KeyboardInterrupt
        if stop.is_requested and time.monotonic() >= next_look:
            forward_stop(attempt, settled)
            next_look = time.monotonic() + FORWARD_EVERY_S
        if must_end():
            return FAILED
        with contextlib.suppress(subprocess.TimeoutExpired):
            return elastic.wait(POLL_S)


def forward_stop(attempt: Attempt, settled: set[Path]) -> None:
    """Send SIGTERM once to each worker of this host that handles signals.

    A worker that is still importing has no heartbeat, and gets the signal when it has one. `settled` has the heartbeats
    of workers that got it or are on another host.
    """
    heartbeats = attempt_dir(attempt.run_dir, attempt.number).glob(f"rank-*/{HEARTBEAT_FILE}")
    for heartbeat in set(heartbeats) - settled:
        try:
            facts = json.loads(heartbeat.read_text())
        except (OSError, ValueError):  # a network file system was replacing it: the next call reads it again
            continue
        settled.add(heartbeat)
        if facts["host"] == socket.gethostname():
            with contextlib.suppress(ProcessLookupError):
                os.kill(facts["pid"], signal.SIGTERM)


def _end(elastic: "subprocess.Popen[bytes]", strangers: set[int]) -> None:
    """Leave no process of the attempt behind."""
    patience_s = ORPHAN_PATIENCE_S
    if elastic.poll() is None:
        elastic.kill()
        elastic.wait()
        patience_s = 0.0
    end_children(strangers, patience_s)
