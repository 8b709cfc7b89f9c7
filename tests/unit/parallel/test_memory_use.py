"""What a process says of its memory grows by what it takes."""

import mmap
from pathlib import Path

import pytest
import torch

from moe_train.parallel import memory_use
from moe_train.parallel.memory_use import memory_bytes

CPU = torch.device("cpu")


def test_the_resident_memory_grows_by_what_is_touched() -> None:
    before, size = memory_bytes(CPU), 64 * 2**20
    with mmap.mmap(
        -1, size
    ) as held:  # of the system, where the allocator may have memory left from other tests
        for page in range(0, size, mmap.PAGESIZE):
            held[page] = 1
        grown = memory_bytes(CPU) - before
    assert size * 0.9 < grown < size * 1.5


def test_without_proc_it_is_the_peak_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    now = memory_bytes(CPU)
    monkeypatch.setattr(memory_use, "STATM", Path("/nowhere"))
    assert memory_bytes(CPU) >= now * 0.9


@pytest.mark.gpu
def test_on_a_gpu_it_is_the_peak_since_the_last_call() -> None:
    device = torch.device("cuda")
    torch.ones(64 * 2**20, dtype=torch.uint8, device=device)
    assert memory_bytes(device) >= 64 * 2**20
    assert memory_bytes(device) < 64 * 2**20
