"""Launches attempts in the Slurm allocation of this command: `srun` starts an agent (node.py) on each node.

Slurm ends the other agents when one fails, and forwards signals from the batch script. Slurm replaces a lost node: it
requeues the job and the batch script starts again; until then no attempt is made. Slurm does not know which nodes a
preflight found unfit: the run continues without them, or requeues itself for others.
"""

import contextlib
import functools
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from moe_cluster.contract import (
    DONE,
    FAILED,
    LAUNCHER_LOG,
    PREEMPTED,
    attempt_dir,
    node_log,
)
from moe_cluster.errors import ClusterError, JobError
from moe_cluster.job import Attempt
from moe_cluster.launcher import Outcome, outcome_of
from moe_cluster.linux import children, start_deaf
from moe_cluster.node.bad_nodes import BadNodes, left_out
from moe_cluster.node.elastic import IGNORED, has_begun
from moe_cluster.own_code import with_own_code
from moe_cluster.slurm.client import host_names
from moe_cluster.slurm.node import END_AT_ONCE, Share
from moe_cluster.slurm.ports import free_ports
from moe_cluster.slurm.requeue import queue_again_without
from moe_cluster.slurm.sbatch import WORKERS_VARIABLE
from moe_cluster.slurm.step import read_step
from moe_cluster.stop import StopRequest
from moe_cluster.watch.findings import recorded_no_start
from moe_cluster.watch.first_cause import FirstCause, read_endings
from moe_cluster.watch.launcher_logs import last_words
from moe_cluster.watch.watch import Watch

POLL_S = 0.1
LOOK_EVERY_S = 1.0
"""Seconds between two checks for a newer attempt."""
TELL_EVERY_S = 1.0
"""Seconds between two stop signals to the agents: one that is still starting ignores them."""
END_PATIENCE_S = 20.0
"""How long the agents may take to end an attempt that hangs."""
STOP_PATIENCE_S = 10.0
"""How long after a request to stop the first worker may still begin, save and end."""
ROLL_CALL_TIMEOUT_S = 30.0
ROLL_CALL_EVERY_S = 5.0
NODES_PATIENCE_S = 900.0
"""How long a node may not answer; Slurm requeues the job much earlier (SlurmdTimeout)."""
# Starts an agent with signals ignored: Slurm signals every process of a job, and one that starts would die of it.
UNTOLD = ("sh", "-c", 'trap "" TERM USR1 USR2; exec "$@"', "sh")
# srun's message about a task, such as "srun: error: node2: task 1: Exited with exit code 1".
FAILED_TASK = re.compile(r"srun: error: (\S+): tasks? [\d,-]+: (.+)")


class SlurmLauncher:
    """Runs workers in this allocation: see launcher.py."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        if "SLURM_JOB_ID" not in environment:
            raise JobError(
                "--launcher slurm: must run inside a Slurm job; submit with `moe-train submit --cluster slurm`, or use "
                "--launcher local"
            )
        if shutil.which("srun", path=environment.get("PATH")) is None:
            raise JobError(
                "--launcher slurm: srun is not on the PATH; install Slurm's client programs on the nodes (in the "
                "container, if the job runs in one)"
            )
        self.environment = environment
        self.bad = BadNodes()

    @functools.cached_property
    def nodes(self) -> tuple[str, ...]:
        """Returns the nodes of the allocation in Slurm's order; the batch script runs on the first."""
        return host_names(self.environment.get("SLURM_JOB_NODELIST", ""))

    @property
    def fit_nodes(self) -> tuple[str, ...]:
        """Returns the nodes that no preflight has found unfit."""
        return tuple(node for node in self.nodes if not self.bad.has(node))

    def choose_workers(
        self, run_dir: Path, allowed: Sequence[int], stop: StopRequest, say: Callable[[str], None]
    ) -> int | None:
        """Returns as many as there is room for on the fit nodes of the allocation, once all answer: see launcher.py."""
        self.bad = left_out(run_dir).among(self.nodes)
        for sentence in self.bad.sentences:
            say(sentence)
        room = self._room(allowed[-1]) * len(self.fit_nodes)
        fitting = [number for number in allowed if number <= room]
        if not fitting and self.bad:
            queue_again_without(self.bad, self.job_id, stop, say)
            return None
        if not fitting:
            raise ClusterError(
                f"slurm:{self.job_id}: has room for {room} workers, but the run needs {allowed[0]}; request more "
                "nodes, or more workers per node"
            )
        deadline, last_problem = time.monotonic() + NODES_PATIENCE_S, ""
        while not stop.is_requested and (problem := _roll_call(self._srun(self.fit_nodes))):
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"slurm:{self.job_id}: not all nodes answer ({problem}); check them with sinfo, then resume"
                )
            if problem != last_problem:
                say(f"waiting for nodes, until Slurm replaces them: {problem}")
            last_problem = problem
            stop.wait(ROLL_CALL_EVERY_S)
        return None if stop.is_requested else fitting[-1]

    @property
    def job_id(self) -> str:
        """Returns Slurm's job id."""
        return self.environment["SLURM_JOB_ID"]

    def command(self, attempt: Attempt) -> str:
        return shlex.join(self._command(attempt))

    def run(self, attempt: Attempt, stop: StopRequest, say: Callable[[str], None]) -> Outcome:
        """See launcher.py."""
        folder = attempt_dir(attempt.run_dir, attempt.number)
        with (folder / LAUNCHER_LOG).open("w") as log:
            srun = subprocess.Popen(
                self._command(attempt),
                env={**with_own_code(self.environment), **attempt.environment},
                stdin=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
                preexec_fn=functools.partial(start_deaf, os.getpid(), IGNORED),
            )
            watch = Watch(attempt.run_dir, attempt.number, attempt.workers, attempt.start_s)
            unbegun = Unbegun(attempt)
            try:
                newer = attempt_dir(attempt.run_dir, attempt.number + 1)
                exit_code = _wait(srun, stop, lambda: unbegun.is_vain_after(stop) or watch.check(say), newer)
            finally:
                _end(srun)
        if stop.is_requested and exit_code != DONE and (unbegun.is_vain or not has_begun(attempt)):
            return Outcome(PREEMPTED)
        if exit_code == DONE and read_endings(folder):  # agents end with 0 when they were asked to stop
            exit_code = FAILED
        return name_node(outcome_of(folder, exit_code), folder)

    def _command(self, attempt: Attempt) -> list[str]:
        room = self._room(attempt.workers)
        full, rest = divmod(attempt.workers, room)
        workers = (*[room] * full, *[rest] * bool(rest))
        port = free_ports(int(self.job_id) + attempt.number, 1)[0]
        share = Share(self.fit_nodes[: len(workers)], port, workers)
        step = read_step(self.environment)
        own = ["--kill-on-bad-exit=1", "--wait=0", *step.srun]
        agent = share.command(attempt, step.python or sys.executable)
        return [*self._srun(share.nodes), *own, *step.prefix, *UNTOLD, *agent]

    def _srun(self, nodes: Sequence[str]) -> list[str]:
        """Returns the srun command for one task on each of `nodes` with all of the job's cores there: srun inherits
        neither from the script's directives."""
        cpus = self.environment.get("SLURM_CPUS_PER_TASK") or self._least_cpus()
        command = ["srun", f"--nodes={len(nodes)}", f"--ntasks={len(nodes)}", "--ntasks-per-node=1"]
        return [*command, *([f"--cpus-per-task={cpus}"] if cpus else []), "--nodelist", ",".join(nodes)]

    def _least_cpus(self) -> str:
        """Returns the least number of cores on a node, for scripts that request whole nodes; Slurm writes them as
        16(x3),32."""
        numbers = re.findall(r"(\d+)(?:\(x\d+\))?", self.environment.get("SLURM_JOB_CPUS_PER_NODE", ""))
        return min(numbers, key=int, default="")

    def _room(self, most: int) -> int:
        """Returns the number of workers on one node."""
        setting = self.environment.get(WORKERS_VARIABLE, "")
        return int(setting) if setting.isdecimal() and int(setting) else -(-most // len(self.nodes))


class Unbegun:
    """Decides whether a stop request is hopeless: no worker has begun, so there is nothing to save or to signal."""

    def __init__(self, attempt: Attempt) -> None:
        self.is_vain = False
        """No worker has begun within STOP_PATIENCE_S of the request."""
        self._attempt, self._requested_at = attempt, math.inf

    def is_vain_after(self, stop: StopRequest) -> bool:
        """Checks again; returns `is_vain`."""
        if stop.is_requested and not self.is_vain:
            self._requested_at = min(self._requested_at, time.monotonic())
            is_late = time.monotonic() - self._requested_at > STOP_PATIENCE_S
            self.is_vain = is_late and not has_begun(self._attempt)
        return self.is_vain


def _roll_call(srun: Sequence[str]) -> str:
    """Returns why not all nodes can start a task; empty if they can."""
    try:
        done = subprocess.run(
            [*srun, "true"], capture_output=True, text=True, timeout=ROLL_CALL_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return "a task does not start"
    return (
        "" if done.returncode == 0 else done.stderr.strip().partition("\n")[0] or "a task cannot be started"
    )


def _wait(
    srun: "subprocess.Popen[bytes]", stop: StopRequest, must_end: Callable[[], bool], newer: Path
) -> int:
    """Wait for the attempt's end. If a `newer` one exists, Slurm has replaced this launcher while it was cut off: its
    srun must do nothing more, because the steps of a requeued job have the same ids."""
    deadline, next_look, next_tell = math.inf, 0.0, 0.0
    while time.monotonic() < deadline:
        if stop.is_urgent:
            raise KeyboardInterrupt
        if stop.is_requested and time.monotonic() >= next_tell:
            next_tell = time.monotonic() + TELL_EVERY_S
            srun.send_signal(signal.SIGUSR1)  # passed on; at SIGTERM srun has the step killed after KillWait
        if time.monotonic() >= next_look:
            next_look = time.monotonic() + LOOK_EVERY_S
            if newer.exists():
                _forsake(srun)
                return FAILED
        if deadline == math.inf and must_end():
            srun.send_signal(END_AT_ONCE)
            deadline = time.monotonic() + END_PATIENCE_S
        with contextlib.suppress(subprocess.TimeoutExpired):
            return srun.wait(POLL_S)
    return FAILED  # a node does not answer: Slurm will replace it


def _forsake(srun: "subprocess.Popen[bytes]") -> None:
    """Kill the processes by which srun cancels its step when it dies: once the network is back, they would cancel the
    newer attempt's step, which has the same id."""
    for guard in children(srun.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(guard, signal.SIGKILL)


def _end(srun: "subprocess.Popen[bytes]") -> None:
    if srun.poll() is None:
        srun.kill()
        srun.wait()


def name_node(outcome: Outcome, folder: Path) -> Outcome:
    """Returns the outcome with the node whose agent failed and its last message, if no worker could be named."""
    cause = outcome.first_cause
    if cause is None or cause.rank is not None or recorded_no_start(folder):
        return outcome
    log = folder / LAUNCHER_LOG
    failed = FAILED_TASK.findall(log.read_text(errors="replace"))
    if not failed:
        return outcome
    node, end = failed[0]
    own = folder / node_log(node)
    message = last_words(own)
    error = f"{end}: {message}" if message else end
    return Outcome(outcome.exit_code, FirstCause(None, node, None, error, own if message else log, FAILED))
