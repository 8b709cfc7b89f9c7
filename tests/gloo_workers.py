"""Runs a function in several processes, gloo's or NCCL's, and gives back what each returned.

Processes are forked from a server that has imported torch and this tree already, so starting one takes no second.
An error of a rank is raised in the test with that rank's traceback; no process outlives the call.
"""

import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from moe_train.parallel.world import World

PRELOADED = [
    "torch",
    "torch._dynamo",  # which the first update imports: more than half of what a short run would take
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "torch.testing",
    "omegaconf",
    "pytest",
    "moe_train.step.training_step",
    "moe_train.checkpoint.checkpointer",
    "moe_kernels.exchange",
]


class WorkerError(AssertionError):
    """A rank failed, or the ranks did not finish in time."""


def run_workers(
    size: int, function: Callable[..., Any], *args: Any, timeout_s: float = 120.0, device: str = "cpu"
) -> list[Any]:
    """Call `function(world, *args)` on `size` ranks; returns the results in rank order.

    On cuda each has a GPU of its own, or, where there are fewer, a share of one, without NCCL, which refuses that.

    `function` must be importable by name. Raises WorkerError with the first failing rank's traceback.
    """
    context = launcher()
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            context.Process(target=_work, args=(rank, size, folder, device, function, args), daemon=True)
            for rank in range(size)
        ]
        for process in ranks:
            process.start()
        try:
            _wait(ranks, Path(folder), time.monotonic() + timeout_s)
        finally:
            for process in ranks:
                process.kill()
                process.join()
        return [torch.load(Path(folder) / f"{rank}.result", weights_only=False) for rank in range(size)]


def launcher() -> Any:
    """Returns the context that starts ranks; its server runs, and imported what they need from this tree.

    The server finds modules by PYTHONPATH alone: it does not get this process's `sys.path`.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        forkserver.ensure_running()
    return context


def join(rank: int, size: int, folder: Path, device: str) -> World:
    """This process as a rank of `size`, which meet in `folder`. Collective."""
    torch.set_num_threads(1)
    place, backend = torch.device(device), "gloo"
    if device == "cuda":
        num_gpus = torch.cuda.device_count()
        place = torch.device(device, rank % num_gpus)
        torch.cuda.set_device(place)
        if size <= num_gpus:
            backend = "cpu:gloo,cuda:nccl"
        else:
            os.environ["TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES"] = "1"
    dist.init_process_group(
        backend,
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=60),
    )
    return World(rank, size, rank, 1, place)


def _work(
    rank: int, size: int, folder: str, device: str, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    try:
        result = function(join(rank, size, Path(folder), device), *args)
        torch.save(result, Path(folder) / f"{rank}.result")
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        (Path(folder) / f"{rank}.error").write_text(traceback.format_exc())
        raise SystemExit(1) from None


def _wait(ranks: list[Any], folder: Path, deadline: float) -> None:
    """Until all ranks ended well. Raises WorkerError otherwise."""
    while any(process.is_alive() for process in ranks) and time.monotonic() < deadline:
        if any(process.exitcode for process in ranks):
            break
        time.sleep(0.02)
    errors = sorted(folder.glob("*.error"), key=lambda path: path.stat().st_mtime_ns)
    if errors:
        raise WorkerError(f"rank {errors[0].stem} failed first:\n{errors[0].read_text()}")
    codes = [process.exitcode for process in ranks]
    if codes != [0] * len(ranks):
        raise WorkerError(f"exit codes by rank (None: still running, out of time): {codes}")
