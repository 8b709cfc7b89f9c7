"""Runs the trainer as a child process in each actor of Ray Train, and supervises it until its end.

Ray Train calls a function in a thread of an actor. The trainer needs its own process: it handles signals in its main
thread, sends its output to its log, is killed by the kernel with its parent, and can be killed while it hangs without
Ray taking that for the loss of an actor. So an actor does for its worker what torch elastic's agent does on a single
machine, and does not import torch: the processes meet at a port of rank 0's node.
"""

import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_cluster.atomic import replace_text
from moe_cluster.contract import (
    ATTEMPT_VARIABLE,
    DONE,
    END_FILE,
    ENDING_FILE,
    LAUNCHER_VARIABLE,
    LOG_FILE,
    PREEMPTED,
    rank_dir,
)
from moe_cluster.linux import free_port, interface_of
from moe_cluster.node.bad_nodes import SLURM_NAME_VARIABLE
from moe_cluster.other_launchers import without_other_launchers
from moe_cluster.own_code import module_command, with_own_code

LOOK_EVERY_S = 0.5
END_S = 4.0
"""Seconds for a worker that was asked to end to do so by itself."""
NOT_PASSED_ON = ("RAY_AUTH_TOKEN", SLURM_NAME_VARIABLE)
"""Ray's own secret, and Slurm's name of a node, which Ray inside a Slurm job does not use."""


class WorkerEndedError(Exception):
    """Reports that a worker failed, so that Ray Train ends the others."""


def train(config: Mapping[str, Any]) -> None:
    """Run one worker: `config` has `run_dir`, `attempt`, `module`, `arguments` and `environment` (of all workers).

    Returns when the worker is done or has saved and stopped; raises WorkerEndedError otherwise.
    """
    from ray import train as ray_train
    from ray.train.collective import broadcast_from_rank_zero
    from ray.util import get_node_ip_address

    context = ray_train.get_context()
    rank, address = context.get_world_rank(), get_node_ip_address()
    meeting = broadcast_from_rank_zero((address, free_port(address)) if rank == 0 else None)
    place = {
        "RANK": rank,
        "WORLD_SIZE": context.get_world_size(),
        "LOCAL_RANK": context.get_local_rank(),
        "LOCAL_WORLD_SIZE": context.get_local_world_size(),
        "GROUP_RANK": context.get_node_rank(),
        "MASTER_ADDR": meeting[0],
        "MASTER_PORT": meeting[1],
        ATTEMPT_VARIABLE: config["attempt"],
        LAUNCHER_VARIABLE: os.getpid(),
    }
    inherited = passed_on(os.environ)
    if interface := interface_of(address):
        inherited.setdefault("GLOO_SOCKET_IFNAME", interface)
    environment = {
        **inherited,
        **config["environment"],
        **{name: str(value) for name, value in place.items()},
    }
    folder = rank_dir(Path(config["run_dir"]), config["attempt"], rank)
    exit_code = _run([config["module"], *config["arguments"]], environment, folder)
    # An attempt that was ended needs no record of its workers' ends.
    problem = "" if (folder.parent / END_FILE).exists() else record_ending(folder, exit_code)
    if problem or exit_code not in (DONE, PREEMPTED):
        raise WorkerEndedError(f"rank {rank} on {socket.gethostname()} ended with {exit_code}{problem}")


def passed_on(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the part of the actor's environment, which is that of `ray start`, for the trainer."""
    inherited = with_own_code(without_other_launchers(environment))
    return {name: value for name, value in inherited.items() if name not in NOT_PASSED_ON}


def record_ending(folder: Path, exit_code: int) -> str:
    """Write ending.json; returns the reason if that fails, as the end of a sentence, or ""."""
    ending = {"exit_code": exit_code, "host": socket.gethostname(), "time": time.time()}
    try:
        replace_text(folder / ENDING_FILE, json.dumps(ending) + "\n")  # a full disk would leave it empty
    except OSError as error:
        return f", and {ENDING_FILE} could not be written ({error.strerror})"
    return ""


def _run(words: list[str], environment: Mapping[str, str], folder: Path) -> int:
    """Run the trainer to its end and return its exit code, or the negative number of the signal that killed it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOG_FILE).open("a") as log:
        worker = subprocess.Popen(
            module_command(*words), env=dict(environment), stdin=subprocess.DEVNULL, stderr=log
        )
    deadline = None
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return worker.wait(LOOK_EVERY_S)
        if (folder.parent / END_FILE).exists() and deadline is None:
            deadline = time.monotonic() + END_S
        if deadline is not None and time.monotonic() >= deadline:
            worker.kill()
