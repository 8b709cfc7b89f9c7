"""Reads this process's rank from the environment once, and joins the workers' process group.

Only this module and `cli.py` read the environment. `World` is passed to all code that needs a rank or a collective; the
only global state behind it is torch's default process group.
"""

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from moe_cluster.contract import ATTEMPT_VARIABLE
from moe_train.errors import RunError, UsageError
from moe_train.parallel.axis import Axis

RECORDED_COLLECTIVES = "500"
"""Torch's flight recorder keeps this many of the last collectives, which a hang leaves behind (worker/heartbeat.py)."""


@dataclass(frozen=True)
class Meeting:
    """Describes the workers of a run before they join a process group: all reach one key-value store."""

    store: dist.Store | None
    """None: there is one worker."""
    rank: int
    size: int
    local_rank: int
    is_one_host: bool
    """Whether all workers are on one host, according to the launcher."""
    use_cuda: bool


@dataclass(frozen=True)
class World:
    """Describes the workers of a run from one worker's view. With one worker there is no process group."""

    rank: int
    size: int
    local_rank: int
    attempt: int
    device: torch.device
    cache: str | None = None
    """The folder for corpora and tokenizers, from MOE_TRAIN_CACHE; None: the default."""
    timeout_s: float = 300.0
    """How long a worker waits for another one before it fails."""

    @classmethod
    def from_env(
        cls,
        device: str = "auto",
        timeout_s: float = 300.0,
        preflight: Callable[[Meeting], None] | None = None,
    ) -> "World":
        """Read RANK, WORLD_SIZE, LOCAL_RANK and the attempt; join the process group if there are several workers.

        The group is gloo on CPU and NCCL (with gloo for CPU tensors) on CUDA. A collective that waits longer than
        `timeout_s` seconds raises. `preflight` is called before the workers join, also for a single worker. Raises
        UsageError if there is no GPU for this worker, RunError if it cannot reach the others.
        """
        rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        use_cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
        chosen = torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")
        if use_cuda:
            _require_gpu(local_rank)
            torch.cuda.set_device(chosen)
        if size == 1 and preflight is not None:
            preflight(Meeting(None, rank, size, local_rank, True, use_cuda))
        if size > 1 and not dist.is_initialized():
            os.environ.setdefault("TORCH_FR_BUFFER_SIZE", RECORDED_COLLECTIVES)
            store = _meet(rank, size, timeout_s)
            if preflight is not None:
                is_one_host = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) == size
                own_keys = dist.PrefixStore("preflight", store)
                preflight(Meeting(own_keys, rank, size, local_rank, is_one_host, use_cuda))
            dist.init_process_group(
                _backend(chosen),
                store=store,
                rank=rank,
                world_size=size,
                timeout=timedelta(seconds=timeout_s),
            )
        attempt = int(os.environ.get(ATTEMPT_VARIABLE, "1"))
        return cls(rank, size, local_rank, attempt, chosen, os.environ.get("MOE_TRAIN_CACHE"), timeout_s)

    @property
    def is_main(self) -> bool:
        """Returns whether this is rank 0, which writes what is written once."""
        return self.rank == 0

    @property
    def everyone(self) -> Axis:
        """Returns all ranks as one axis."""
        return Axis(self.size, self.rank)

    def gather(self, value: Any) -> list[Any]:
        """Returns one picklable object of every rank, in rank order, on every rank. Collective."""
        if self.size == 1:
            return [value]
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, value)
        return gathered

    def from_main(self, value: Any) -> Any:
        """Returns rank 0's picklable object on every rank. Collective."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def introduce_to_deepspeed(self) -> None:
        """Sets what DeepSpeed reads from the environment as it is imported and started.

        A single worker becomes a process group of one, which it wants too.
        """
        os.environ.setdefault("DS_ACCELERATOR", self.device.type)
        os.environ.setdefault("LOCAL_RANK", str(self.local_rank))
        if not dist.is_initialized():
            dist.init_process_group(_backend(self.device), store=dist.HashStore(), rank=0, world_size=1)

    def barrier(self) -> None:
        """Wait for all ranks. Collective."""
        if self.size > 1:
            dist.barrier()

    def leave(self) -> None:
        """Destroy the process group, if there is one."""
        if dist.is_initialized():
            dist.destroy_process_group()


def _meet(rank: int, size: int, timeout_s: float) -> dist.Store:
    """Connect to the store at MASTER_ADDR and MASTER_PORT, which torch elastic or rank 0 hosts."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    hosts = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    timeout = timedelta(seconds=timeout_s)
    try:
        return dist.TCPStore(
            address, port, size, hosts, timeout=timeout, wait_for_workers=False, multi_tenant=True
        )
    except dist.DistError as error:
        raise RunError(
            f"rank {rank} on {socket.gethostname()} cannot reach the workers' store at {address}:{port} "
            f"({str(error).splitlines()[0]}); check firewalls and routes to that node"
        ) from None


def _backend(device: torch.device) -> str:
    """Returns torch's name for gloo, or on CUDA for NCCL with gloo beside it."""
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


def _require_gpu(local_rank: int) -> None:
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if local_rank >= available:
        raise UsageError(
            f"job.device=cuda: every worker needs its own GPU, and for worker {local_rank} of this machine torch sees "
            f"{available}; start fewer workers, or set job.device=cpu"
        )
