"""Save and load on real processes over gloo: one worker, two workers, and back."""

import socket
from pathlib import Path

import torch
import torch.multiprocessing as mp
from checkpoint_states import emptied, equal, state

from moe_train.checkpoint.checkpointer import Checkpointer
from moe_train.checkpoint.lineage import record_start
from moe_train.config.schema import CheckpointConfig
from moe_train.parallel.world import World


def load_then_save(rank: int, size: int, run_dir: Path, attempt: int, port: int) -> None:
    """Resume from the newest checkpoint, compare every tensor, and save the next step in the background."""
    if size > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size
        )
    world = World(rank, size, rank, attempt, torch.device("cpu"))
    checkpointer = Checkpointer(run_dir, CheckpointConfig(keep_last=0), world)
    held = state(rank, size, expert=size)
    found = checkpointer.choose("latest")
    if found is not None:
        target = emptied(held)
        assert checkpointer.load(found, target) == {"step": attempt - 1, "from": attempt - 1}
        assert equal(target, held)
    if world.is_main:
        record_start(run_dir, attempt, found.origin if found else None)
    world.barrier()
    checkpointer.save(attempt, held, {"from": attempt})
    total = world.everyone.sum(torch.ones(1))  # a collective while the save is under way
    checkpointer.wait()
    assert total.item() == size
    assert checkpointer.poll() == [attempt]
    world.leave()


def test_one_worker_two_workers_and_one_again(tmp_path):
    for attempt, size in enumerate((1, 2, 1), start=1):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        if size == 1:
            load_then_save(0, 1, tmp_path, attempt, port)
        else:
            mp.spawn(load_then_save, (size, tmp_path, attempt, port), nprocs=size)
    assert Checkpointer(tmp_path, CheckpointConfig(), World(0, 1, 0, 4, torch.device("cpu"))).steps() == [
        1,
        2,
        3,
    ]
