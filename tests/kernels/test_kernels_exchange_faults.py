"""A rank that is lost or runs another program: the others say who, where and when; nothing is left behind."""

import os
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import require_tool
from gloo_workers import run_workers
from lost_ranks import die, lose

from moe_kernels.errors import KernelError, PeerTimeoutError
from moe_kernels.exchange import Exchange
from moe_train.parallel.world import World

TIMEOUT_S = 60.0
"""Longer than a test may take: what these tests see has not waited for it."""


def _inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.ones(4, 16), torch.arange(8, dtype=torch.int32).view(4, 2), torch.ones(4, 2)


def _until_it_fails(exchange: Exchange) -> str:
    """Dispatch and combine for ever; returns what the exchange says in the end."""
    x, expert_ids, weights = _inputs()
    try:
        while True:
            dispatched = exchange.dispatch(x, expert_ids)
            exchange.combine(dispatched.rows, weights, dispatched)
    except PeerTimeoutError as error:
        first = str(error)
    with pytest.raises(PeerTimeoutError, match=re.escape(first)):
        exchange.dispatch(x, expert_ids)  # dead for good
    return first


def _rank(rank: int, folder: Path, victim: int) -> str:
    exchange = Exchange.join(dist.group.WORLD, 8, TIMEOUT_S)
    (folder / f"{rank}.maps").write_text(Path("/proc/self/maps").read_text())
    (folder / f"{rank}.files").write_text(" ".join(os.readlink(path) for path in _descriptors()))
    if rank == victim:
        x, expert_ids, _ = _inputs()
        exchange.dispatch(x, expert_ids)
        die()
    return _until_it_fails(exchange)


def _descriptors() -> list[Path]:
    return [path for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_is_named_and_nothing_of_it_is_left(victim, tmp_path):
    require_tool("g++", "g++")
    before = set(os.listdir("/dev/shm"))
    began = time.monotonic()
    said = lose(victim, 2, tmp_path, _rank, victim)[1 - victim]
    assert said == (
        f"rank {1 - victim} of 2 stopped waiting: the process of rank {victim} exited before it reached combine "
        "number 2"
    )
    assert time.monotonic() - began < TIMEOUT_S
    for rank in range(2):
        maps = (tmp_path / f"{rank}.maps").read_text()
        assert maps.count("memfd:moe_kernels (deleted)") == 2
        assert "memfd" not in (tmp_path / f"{rank}.files").read_text()
        assert "/dev/shm" not in maps
    assert not {name for name in set(os.listdir("/dev/shm")) - before if "moe" in name}


def _another_program(world: World) -> str:
    exchange = Exchange.join(dist.group.WORLD, 8, TIMEOUT_S)
    x, expert_ids, weights = _inputs()
    dispatched = exchange.dispatch(x, expert_ids)
    wanted = partial(exchange.dispatch, x, expert_ids)
    if world.rank == 0:
        wanted = partial(exchange.combine, dispatched.rows, weights, dispatched)
    with pytest.raises(PeerTimeoutError) as caught:
        wanted()
    return str(caught.value)


def test_ranks_that_issue_different_operations_are_told_so():
    require_tool("g++", "g++")
    first, second = run_workers(2, _another_program)
    for rank, said, mine, theirs in ((0, first, "combine", "dispatch"), (1, second, "dispatch", "combine")):
        assert said == (
            f"rank {rank} of 2 is at {mine} number 2, but rank {1 - rank} is at {theirs}: "
            "the ranks do not run the same program"
        )


def _too_late(world: World, folder: Path) -> str:
    exchange = Exchange.join(dist.group.WORLD, 8, timeout_s=0.2)
    x, expert_ids, _ = _inputs()
    exchange.dispatch(x, expert_ids)
    if world.rank == 1:
        while not (folder / "said").exists():
            time.sleep(0.01)
        return ""
    with pytest.raises(PeerTimeoutError) as caught:
        exchange.dispatch(x, expert_ids)
    (folder / "said").touch()
    return str(caught.value)


def test_a_rank_that_is_there_but_silent_is_given_up_in_time(tmp_path):
    require_tool("g++", "g++")
    said, _ = run_workers(2, _too_late, tmp_path)
    assert said == "rank 0 of 2 timed out after 0.2 s: rank 1 did not reach dispatch number 2"


def _refused(world: World, spoil: Callable[[World], None]) -> str:
    spoil(world)
    with pytest.raises(KernelError) as caught:
        Exchange.join(dist.group.WORLD, 8, TIMEOUT_S)
    return str(caught.value)


def _no_library(world: World) -> None:
    os.environ["MOE_KERNELS"] = "reference" if world.rank == 1 else "cpu"


def _another_host(world: World) -> None:
    from moe_kernels import segments

    segments.HOST_FILE = Path("/proc/sys/kernel/random/uuid")  # another text at each reading


def _another_container(world: World) -> None:
    own = os.getpid()
    os.getpid = lambda: os.getppid() if world.rank == 1 else own


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_no_library, "rank 1 of 2 reports: there is no kernel library, set by MOE_KERNELS"),
        (_another_host, "the ranks are not all on one host, so they share no memory"),
        (_another_container, "rank 0 of 2 reports: the memory of a peer cannot be opened: "),
    ],
)
def test_all_ranks_refuse_together_and_say_why(spoil, said):
    require_tool("g++", "g++")
    found = run_workers(2, _refused, spoil)
    assert found[0].startswith(said)
    assert found[0] == found[1]
