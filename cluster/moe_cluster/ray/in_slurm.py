"""Starts a Ray cluster inside a Slurm job: `python -P -m moe_cluster.ray.in_slurm COMMAND...`, on the batch node.

`srun` starts one Ray (node.py) on each node of the allocation, with a token of this job's own. COMMAND runs beside
them, and when it ends exactly these Ray processes end: they are steps of this job, and other Rays on the same machines
are left alone. Signals go to COMMAND, whose exit code is returned.
"""

import contextlib
import functools
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from moe_cluster.contract import FAILED, PREEMPTED
from moe_cluster.errors import ClusterError
from moe_cluster.linux import catches, die_with_parent, start_deaf
from moe_cluster.output import protect_output
from moe_cluster.own_code import module_command, with_own_code
from moe_cluster.ray.node import SIGNALS, TOLD
from moe_cluster.ray.settings import SETTINGS
from moe_cluster.slurm.addresses import address_in_job, with_port
from moe_cluster.slurm.client import host_names
from moe_cluster.slurm.ports import free_ports

STARTED = "Ray runtime started"
START_TIMEOUT_S = 300.0
END_TIMEOUT_S = 30.0
POLL_S = 0.2
LOOK_EVERY_S = 1.0
GONE_PATIENCE_S = 10.0
"""How long Slurm may take to send SIGTERM to this job after it has ended some of its steps."""


class RayOfJob:
    """Runs Ray on all nodes of an allocation, as a context manager; `environment` connects a process to it."""

    def __init__(self, environment: Mapping[str, str], logs: Path, asked: Sequence[int]) -> None:
        """`logs`: a folder for the output of Ray's processes; `asked`: the signals that this process has received so
        far, a list that grows."""
        self._job_id, self._logs, self._asked = environment["SLURM_JOB_ID"], logs, asked
        self._nodes = host_names(environment["SLURM_JOB_NODELIST"])
        self._cpus = environment.get("SLURM_CPUS_PER_TASK", "1")
        self._gpus = environment.get("SLURM_GPUS_ON_NODE", "0")
        self._ports = free_ports(int(self._job_id), 2)
        # Not by name: Ray asks name servers even for names in /etc/hosts.
        self._ip = address_in_job(self._nodes)
        self._address = with_port(self._ip, self._ports[0])
        # A token in the environment is visible to this user's processes only, and in no command line or log.
        own = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self.environment = {**SETTINGS, **with_own_code(environment), **own, "RAY_ADDRESS": self._address}
        self._steps: dict[subprocess.Popen[bytes], Path] = {}
        self._gone_since: float | None = None

    def __enter__(self) -> "RayOfJob":
        try:
            self._start("head", self._nodes[:1], self._head_options())
            if (others := self._nodes[1:]) and not self.asked:
                self._start("others", others, [f"--address={self._address}"])
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def _head_options(self) -> list[str]:
        gcs, dashboard = self._ports
        place = [f"--node-ip-address={self._ip}", f"--port={gcs}"]
        place += [f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"]
        return ["--head", *place, "--disable-usage-stats"]

    @property
    def asked(self) -> int:
        """Returns the signal at which the job should end; 0 without one. Before a preemption Slurm signals the steps
        earlier than the script."""
        if self._asked:
            return self._asked[0]
        return signal.SIGTERM if any(TOLD in _text(log) for log in self._steps.values()) else 0

    def require(self) -> None:
        """Raise ClusterError if a node has been without Ray for a while, and Slurm is not about to end the job."""
        gone = [log for step, log in self._steps.items() if step.poll() is not None]
        if not gone or self.asked:
            self._gone_since = None
            return
        self._gone_since = self._gone_since or time.monotonic()
        if time.monotonic() - self._gone_since > GONE_PATIENCE_S:
            raise ClusterError(f"a Ray process of this job exited; see {gone[0]}")

    def _start(self, name: str, nodes: Sequence[str], options: Sequence[str]) -> None:
        """Start Ray on some nodes, and return when it runs on all of them."""
        path = self._logs / f"{self._job_id}-ray-{name}.log"
        where = [
            f"--nodes={len(nodes)}",
            f"--ntasks={len(nodes)}",
            "--ntasks-per-node=1",
            f"--nodelist={','.join(nodes)}",
        ]
        srun = ["srun", "--overlap", *where, f"--cpus-per-task={self._cpus}", "--kill-on-bad-exit=1"]
        size = [f"--num-cpus={self._cpus}", f"--num-gpus={self._gpus}"]
        node = module_command("moe_cluster.ray.node", f"moe-train-{self._job_id}")
        ray = module_command("ray.scripts.scripts", "start", "--block", *options, *size)
        with path.open("w") as log:
            step = subprocess.Popen(
                [*srun, *node, *ray],
                env={name: value for name, value in self.environment.items() if name != "RAY_ADDRESS"},
                stdin=subprocess.PIPE,  # each node reads it, and ends when it is closed
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=functools.partial(die_with_parent, os.getpid()),
            )
        self._steps[step] = path
        deadline = time.monotonic() + START_TIMEOUT_S
        while _text(path).count(STARTED) < len(nodes) and not self.asked:
            if step.poll() is not None or time.monotonic() > deadline:
                how = (
                    f"did not start within {START_TIMEOUT_S:.0f} s"
                    if step.poll() is None
                    else "exited at start"
                )
                raise ClusterError(f"Ray on {', '.join(nodes)} {how}; see {path}")
            time.sleep(POLL_S)

    def _end(self) -> None:
        """End these steps; Slurm kills processes of a step that outlive its first one."""
        for step in self._steps:
            assert step.stdin
            step.stdin.close()
        deadline = time.monotonic() + END_TIMEOUT_S
        for step in self._steps:
            try:
                step.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                step.kill()
                step.wait()


def main(command: Sequence[str], environment: Mapping[str, str], logs: Path) -> int:
    """Run `command` with its own Ray; returns its exit code, or PREEMPTED if a signal came before it could begin.

    Raises ClusterError if Ray does not start.
    """
    asked: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        asked.append(signal.SIGUSR1 if number == signal.SIGUSR1 else signal.SIGTERM)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, receive)
    ray = RayOfJob(environment, logs, asked)
    try:
        with ray:
            return PREEMPTED if ray.asked else _run(command, ray)
    except ClusterError:
        if ray.asked:  # so no more steps can start
            return PREEMPTED
        raise
    finally:
        for number in SIGNALS:  # the script sends more of them; Python drops its handlers before it ends
            signal.signal(number, signal.SIG_IGN)


def _run(command: Sequence[str], ray: RayOfJob) -> int:
    """Run `command` to its end. It gets a signal once, when it handles signals: at its end another would kill it.

    Raises ClusterError, after killing the command, if a Ray process exited.
    """
    process = subprocess.Popen(
        command, env=ray.environment, preexec_fn=functools.partial(start_deaf, os.getpid(), SIGNALS)
    )
    is_signalled = False
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(LOOK_EVERY_S)
            ray.require()
            if not is_signalled and (number := ray.asked) and catches(process.pid, number):
                process.send_signal(number)
                is_signalled = True
    except ClusterError:
        process.kill()
        process.wait()
        raise


def _text(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")


if __name__ == "__main__":
    protect_output(is_result=False)
    try:
        sys.exit(main(sys.argv[2:], os.environ, Path(sys.argv[1])))
    except ClusterError as error:
        print(f"moe-train: error: {error}", file=sys.stderr)
        sys.exit(FAILED)
