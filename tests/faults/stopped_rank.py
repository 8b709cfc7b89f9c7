"""A rank that stops itself (SIGSTOP) in a chosen collective of a training step, under the launcher's watch."""

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from gloo_workers import join, launcher
from own_processes import wait_for
from tiny_model import global_batch, share_of, tiny_recipe, vocabulary

from moe_cluster.contract import attempt_dir
from moe_cluster.watch.findings import Hang, recorded_hang
from moe_cluster.watch.watch import Watch as LauncherWatch
from moe_train.config.layout import plan_of
from moe_train.parallel.mesh import Mesh
from moe_train.parallel.world import RECORDED_COLLECTIVES
from moe_train.planner.watch import Watch
from moe_train.step.training_step import TrainingStep
from moe_train.train import report_place
from moe_train.worker.process import Process

HANG_S = 5.0
SOUND_STEPS = 3
"""Updates before the one in which the rank stops."""


@dataclass(frozen=True)
class Where:
    """Chooses the first operation of a kind that a file's code causes, in one direction."""

    operation: str
    """A part of torch's name for it."""
    file: str
    is_backward: bool = False


class StopIn(Watch):
    """Stops this process before an operation."""

    def __init__(self, where: Where) -> None:
        super().__init__()
        self.where = where

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        is_backward = torch._C._current_graph_task_id() != -1
        is_meant = self.where.operation in func.name() and is_backward == self.where.is_backward
        if is_meant and any(self.where.file in frame.f_code.co_filename for frame in _frames()):
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().__torch_dispatch__(func, types, args, kwargs)


@dataclass(frozen=True)
class Outcome:
    """What the launcher's watch found, and when."""

    hang: Hang
    seconds: float
    """From the stop to the finding."""
    num_ended: int
    """Ranks that ended by themselves."""


def watched_hang(run_dir: Path, size: int, stopped: int, where: Where, overrides: Sequence[str]) -> Outcome:
    """Trains the tiny model on `size` ranks, of which one stops, until the launcher's watch ends the attempt."""
    attempt_dir(run_dir, 1).mkdir(parents=True)
    with _ranks(size, run_dir, stopped, where, tuple(overrides)) as processes:
        wait_for(lambda: not _all_live(processes) or _is_stopped(processes[stopped].pid), timeout_s=300)
        assert _all_live(processes), f"no rank stopped in {where}; see {run_dir}"
        began, watch = time.monotonic(), LauncherWatch(run_dir, 1, size)
        wait_for(lambda: watch.check(print), timeout_s=60)
        seconds = time.monotonic() - began
        others = [process for rank, process in enumerate(processes) if rank != stopped]
        wait_for(lambda: not any(process.is_alive() for process in others), timeout_s=30)
    found = recorded_hang(attempt_dir(run_dir, 1))
    assert found is not None
    return Outcome(found[0], seconds, len(others))


@contextmanager
def _ranks(size: int, *arguments: Any) -> Iterator[list[Any]]:
    context = launcher()
    processes = [context.Process(target=_train, args=(rank, size, *arguments)) for rank in range(size)]
    for process in processes:
        process.start()
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.join()


def _train(
    rank: int, size: int, run_dir: Path, stopped: int, where: Where, overrides: tuple[str, ...]
) -> None:
    with Process(run_dir, 1, rank) as process:
        recipe = tiny_recipe(*overrides)
        process.progress.expect(HANG_S, 300.0)
        os.environ["TORCH_FR_BUFFER_SIZE"] = RECORDED_COLLECTIVES
        mesh = Mesh.build(plan_of(recipe.parallel, size), world := join(rank, size, run_dir, "cpu"))
        training_step = TrainingStep.build(recipe, mesh, vocabulary(recipe))
        report_place(process, mesh, training_step.engine.model)
        for step in range(SOUND_STEPS + 1):
            batches = share_of(
                global_batch(recipe, step), mesh.data.rank, mesh.data.size, recipe.data.micro_batch
            )
            stops = step == SOUND_STEPS and world.rank == stopped
            with StopIn(where) if stops else nullcontext():
                training_step.update(batches, step, False)
            process.beat(step + 1)


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def _all_live(processes: Sequence[Any]) -> bool:
    return all(process.is_alive() for process in processes)
