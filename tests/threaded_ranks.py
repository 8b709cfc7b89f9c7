"""Several ranks as threads of one process, for code that needs more than one rank but no process group."""

import threading
from collections.abc import Callable
from typing import Any

import torch

from moe_train.parallel.axis import Axis
from moe_train.parallel.world import World


class _Meeting:
    """Where threads exchange one object each."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=60)
        self.values: list[Any] = [None] * size

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self.values[rank] = value
        self.barrier.wait()
        everything = list(self.values)
        self.barrier.wait()
        return everything


class ThreadWorld(World):
    """A World whose collectives meet in memory."""

    def __init__(self, rank: int, meeting: _Meeting, size: int, attempt: int) -> None:
        super().__init__(rank, size, rank, attempt, torch.device("cpu"))
        object.__setattr__(self, "_meeting", meeting)

    @property
    def everyone(self) -> Axis:
        return ThreadAxis(self)

    def gather(self, value: Any) -> list[Any]:
        return self._meeting.exchange(self.rank, value)

    def from_main(self, value: Any) -> Any:
        return self._meeting.exchange(self.rank, value)[0]

    def barrier(self) -> None:
        self._meeting.barrier.wait()


class ThreadAxis(Axis):
    """An axis of all ranks of a ThreadWorld."""

    def __init__(self, world: World) -> None:
        super().__init__(world.size, world.rank)
        object.__setattr__(self, "_world", world)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values.copy_(torch.stack(self._world.gather(values.clone())).sum(0))


def run_ranks(size: int, function: Callable[[World], Any], attempt: int = 1) -> list[Any]:
    """Call `function` on `size` ranks at once; what each returned, or the exception it raised."""
    meeting, results = _Meeting(size), [None] * size

    def rank_main(rank: int) -> None:
        try:
            results[rank] = function(ThreadWorld(rank, meeting, size, attempt))
        except Exception as error:  # handed to the test
            results[rank] = error

    threads = [threading.Thread(target=rank_main, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def one_rank(attempt: int = 1) -> World:
    """The only worker of a run."""
    return World(0, 1, 0, attempt, torch.device("cpu"))
