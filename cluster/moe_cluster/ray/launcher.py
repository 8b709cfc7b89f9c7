"""Launches attempts on a Ray cluster: each is one Ray Train run of a fixed size, on nodes chosen for it.

Ray Train places and starts the workers and reports their ends; it does not restart or resize. New attempts do: they are
numbered and fenced, and have only sizes that the recipe's layout allows. A smaller one follows when a node is lost, a
larger one when there has been room for it for a while: the workers save, and continue as more.
"""

import contextlib
import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import ray

from moe_cluster.contract import JOB_VARIABLE, PREEMPTED, attempt_dir, request_end, request_stop
from moe_cluster.errors import JobError
from moe_cluster.job import Attempt
from moe_cluster.launcher import Outcome
from moe_cluster.node.bad_nodes import BadNodes, left_out
from moe_cluster.own_code import package_folders
from moe_cluster.ray.changes import SETTLE_S, Changes
from moe_cluster.ray.nodes import RayNode, alive_nodes, fit, room
from moe_cluster.ray.outcome import outcome_of_ray
from moe_cluster.ray.settings import SETTINGS
from moe_cluster.ray.trainer import TrainRun, chosen_nodes
from moe_cluster.share import SHARE_VARIABLE, Share
from moe_cluster.slurm.requeue import queue_again_without
from moe_cluster.stop import StopRequest
from moe_cluster.watch.watch import Watch

POLL_S = 0.2
JOB_CONFIG_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by the Jobs API for the command of a job."""


class RayLauncher:
    """Runs workers on the Ray cluster of this command: see launcher.py."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.share = Share(**json.loads(environment.get(SHARE_VARIABLE, '{"resources": {"CPU": 1}}')))
        self.is_job = JOB_CONFIG_VARIABLE in environment
        self.slurm_job = environment.get(JOB_VARIABLE, "").partition("slurm:")[2]
        """The Slurm job that this Ray is part of, so that waiting brings no other nodes; empty without one."""
        self.allowed: Sequence[int] = ()
        self.bad = BadNodes()

    def choose_workers(
        self, run_dir: Path, allowed: Sequence[int], stop: StopRequest, say: Callable[[str], None]
    ) -> int | None:
        """See launcher.py. Waits without limit for the smallest number, and reports what it waits for."""
        self._join()
        self.allowed = allowed
        for sentence in left_out(run_dir).sentences:
            say(sentence)
        began, reported_room = time.monotonic(), -1
        while not stop.is_requested:
            nodes, self.bad = alive_nodes(), left_out(run_dir)
            there = room(fit(nodes, self.bad), self.share)
            fitting = [number for number in allowed if number <= there]
            settled = time.monotonic() - began >= SETTLE_S
            if fitting and (settled or fitting[-1] == allowed[-1]):
                return fitting[-1]
            unfit = self.bad.among(node.host for node in nodes)
            if settled and self.slurm_job and unfit:
                queue_again_without(unfit, self.slurm_job, stop, say)
                return None
            if settled and there != reported_room:
                say(f"waiting for room: {allowed[0]} workers are needed, and there is room for {there}")
                reported_room = there
            stop.wait(1.0)
        return None

    def command(self, attempt: Attempt) -> str:
        """See launcher.py."""
        each = ", ".join(f"{name} {value:g}" for name, value in self.share.resources.items())
        words = " ".join(["python -P -m", attempt.module, *attempt.arguments])
        return f"Ray Train, {attempt.workers} workers with {each} each: {words}"

    def run(self, attempt: Attempt, stop: StopRequest, say: Callable[[str], None]) -> Outcome:
        """See launcher.py."""
        folder = attempt_dir(attempt.run_dir, attempt.number)
        nodes = chosen_nodes(fit(alive_nodes(), self.bad), attempt.workers, self.share)
        if len(nodes) < attempt.workers:
            return Outcome(PREEMPTED, resizes=True)  # the room was taken since it was chosen
        running = TrainRun(attempt, self.share, nodes)
        changes = Changes(nodes, attempt.workers, self.allowed, self.share, self.bad)
        watch, reason = Watch(attempt.run_dir, attempt.number, attempt.workers, attempt.start_s), ""
        while not running.wait(POLL_S):
            if stop.is_urgent:
                ray.shutdown()  # ends all of this driver's actors
                raise KeyboardInterrupt
            changes.look()
            must_end = _has_placed(folder) and watch.check(say)
            if not running.is_ending and (must_end or _has_lost(attempt, changes, say)):
                running.end()
            if not reason and (reason := _reason_to_stop(stop, changes, say)):
                _tell_workers(request_stop, attempt, reason, say)
        lost = {node.host: _silence(node) for node in changes.lost}
        outcome = outcome_of_ray(folder, attempt.workers, running.error, lost, _gone(nodes))
        if outcome.exit_code == PREEMPTED and not stop.is_requested:
            return replace(outcome, resizes=True)
        return outcome

    def _join(self) -> None:
        """Connect to the cluster as a driver, and keep the caller's signal handlers: Ray's SIGTERM handler would end it
        at once."""
        if ray.is_initialized():
            return
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        # A job has its code from the Jobs API.
        runtime_env = None if self.is_job else {"py_modules": package_folders()}
        try:
            # Ray's workers search the driver's working directory first; a deleted one contains no modules.
            with tempfile.TemporaryDirectory() as empty, contextlib.chdir(empty):
                ray.init(address="auto", runtime_env=runtime_env)
        except ConnectionError as error:
            raise JobError(
                f"--launcher ray: there is no Ray cluster on this host ({error}); start one, or use `moe-train submit "
                "--cluster ray`"
            ) from None
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _has_placed(folder: Path) -> bool:
    """Returns whether Ray Train has begun to start workers; until then its own time limits apply."""
    return any(folder.glob("rank-*"))


def _has_lost(attempt: Attempt, changes: Changes, say: Callable[[str], None]) -> bool:
    """Returns whether a node of the attempt is lost; if so, asks the remaining workers to end."""
    if changes.lost:
        _tell_workers(request_end, attempt, ", ".join(map(_silence, changes.lost)), say)
    return bool(changes.lost)


def _tell_workers(
    request: Callable[[Path, int, str], None], attempt: Attempt, reason: str, say: Callable[[str], None]
) -> None:
    """Ask the workers to stop or to end; report it if the request cannot be written."""
    try:
        request(attempt.run_dir, attempt.number, reason)
    except OSError as error:
        say(f"{reason} (the workers could not be asked to stop: {error.filename}: {error.strerror})")


def _reason_to_stop(stop: StopRequest, changes: Changes, say: Callable[[str], None]) -> str:
    """Returns why the workers have to save and stop; empty if they need not."""
    if stop.is_requested:
        return "the launcher was told to stop"
    if changes.room_for is None:
        return ""
    reason = f"there is room for {changes.room_for} workers: saving, to continue with that number"
    say(reason)
    return reason


def _gone(nodes: Sequence[RayNode]) -> dict[str, str]:
    """Returns the hosts of `nodes` that no longer answer, each with a sentence."""
    there = {node.id for node in alive_nodes()}
    return {node.host: _silence(node) for node in nodes if node.id not in there}


def _silence(node: RayNode) -> str:
    return f"its node {node.host} ({node.address}) does not answer"
