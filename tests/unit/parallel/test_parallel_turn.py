"""Who builds and who waits, with ranks as threads: a lock belongs to an open file, not to a process."""

import threading
import time
from pathlib import Path

import pytest
from threaded_ranks import one_rank, run_ranks

from moe_train.parallel.turn import first_of_host
from moe_train.parallel.world import World


@pytest.mark.parametrize("fails", [False, True])
def test_the_neighbours_enter_when_the_first_has_left_even_by_an_error(tmp_path: Path, fails: bool) -> None:
    order: list[str] = []

    def work(world: World) -> None:
        with first_of_host(world, tmp_path):
            order.append(f"{world.rank} in")
            if world.rank == 0:
                time.sleep(0.1)
                order.append("0 out")
                if fails:
                    raise ValueError("no text")

    results = run_ranks(3, work)
    assert order[:2] == ["0 in", "0 out"]
    assert sorted(order[2:]) == ["1 in", "2 in"]
    assert [isinstance(result, ValueError) for result in results] == [fails, False, False]


def test_every_host_has_a_first_worker_of_its_own_and_neighbours_share_the_rest(tmp_path: Path) -> None:
    together = [threading.Barrier(2, timeout=30), threading.Barrier(2, timeout=30)]

    def work(world: World) -> None:
        # Ranks 0 and 1 on one host, 2 and 3 on another.
        object.__setattr__(world, "local_rank", world.rank % 2)
        with first_of_host(world, tmp_path):
            together[world.local_rank].wait()

    assert run_ranks(4, work) == [None] * 4


def test_one_worker_alone_needs_no_lock(tmp_path: Path) -> None:
    with first_of_host(one_rank(), tmp_path):
        assert list(tmp_path.iterdir()) == []
