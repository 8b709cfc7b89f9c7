"""A worker that follows the contract and trains nothing: what the launcher is tested with.

STANDIN says what goes wrong, as "KIND:RANK:STEP:ATTEMPT" (any number of them, separated by spaces). Its
checkpoint is the number of the step, in RUN/saved.
"""

import argparse
import os
import signal
import sys
import time
from pathlib import Path

from moe_cluster.contract import DONE, PREEMPTED
from moe_train.checkpoint.lineage import record_start
from moe_train.config.load import load_recipe
from moe_train.errors import DataError
from moe_train.run_folder import mark_finished
from moe_train.worker.process import Process


def misbehave(process: Process, step: int) -> None:
    for fault in os.environ.get("STANDIN", "").split():
        kind, rank, at, attempt = fault.split(":")
        if (int(rank), int(at), int(attempt)) != (process.rank, step, process.attempt):
            continue
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "raise":
            raise ValueError("the expert is not at home\nsecond line")
        if kind == "usage":
            raise DataError("data.corpus.path=nowhere: holds no text; choose another folder")
        if kind == "exit":
            os._exit(9)


def work(run_dir: Path, steps: int, process: Process) -> int:
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    if process.rank == 0:
        record_start(run_dir, process.attempt, None)
    saved = run_dir / "saved"
    first = 1 + (int(saved.read_text()) if saved.exists() else 0)
    for step in range(first, steps + 1):
        misbehave(process, step)
        asked = torch.tensor([int(process.stop_requested)])
        dist.all_reduce(asked)
        if asked.item():
            return PREEMPTED
        process.beat(step)
        if process.rank == 0:
            saved.write_text(str(step))
            print(f"worker says step {step}", flush=True)
        time.sleep(0.02)
    dist.barrier()
    if process.rank == 0:
        mark_finished(run_dir, steps)
    return DONE


if __name__ == "__main__":
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("recipe")
    parser.add_argument("--run-dir", type=Path)
    parser.add_argument("--resume")
    options = parser.parse_args()
    with Process.of_worker(options.run_dir, os.environ) as this:
        sys.exit(work(options.run_dir, load_recipe(options.recipe).steps, this))
