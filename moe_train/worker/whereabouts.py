"""Samples where the main thread of a worker is, and how much of its time it waits for other workers.

Another thread reads its stack, so the work of a step is not instrumented and costs nothing. Imports no torch: a worker
has whereabouts before torch is imported. Read `heartbeat.py` next.
"""

import gc
import sys
import threading
from collections import deque
from dataclasses import dataclass, replace
from types import FrameType

OWN = ("moe_train", "moe_kernels", "moe_cluster")
# Where a worker waits for others, or moves rows between them: on the CPU in the collective itself, on CUDA where the
# host reads a result. `parallel.turn` is not among them: its wait may take as long as building a corpus.
WAITING = (
    "torch.distributed",
    "moe_kernels.all_to_all",
    "moe_kernels.all_to_all",
    "moe_kernels.endpoint",
    "moe_kernels.exchange",
    "moe_train.checkpoint.rendezvous",
    "moe_train.moe.dispatch.all_to_all",
    "moe_train.parallel.world",
)
# These call kernels and collectives for all others, so their caller is the place to report.
ON_BEHALF = ("moe_kernels.launch", "moe_train.parallel.axis")
# A CPU tensor's backward pass runs in the thread that asked for it, a CUDA tensor's in one of torch's own.
BACKWARD = "torch.autograd.graph"
# What a pass through the model runs, from the embedding to the loss.
FORWARD = ("moe_train.model", "moe_train.objectives")


@dataclass(frozen=True)
class Place:
    """Names a line of our own code, and whether the thread waits there for another worker."""

    where: str
    """As "moe/layers/layer.py:123 forward"."""
    is_waiting: bool
    direction: str = ""
    """forward or backward: of the pass through the model that the thread is in; empty outside of one."""


NOWHERE = Place("outside of moe-train", is_waiting=False)


def main_thread_place() -> Place:
    """Returns where the main thread is. Called by another thread.

    Garbage collection is off meanwhile. A collection that begins while Python makes the frame object of a running
    thread can let that thread continue (a tensor's destructor releases the lock): the frame is then some other object,
    or both threads deadlock (seen with Python 3.11).
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        return _main_thread_place()
    finally:
        if collects:
            gc.enable()


def _main_thread_place() -> Place:
    frames = sys._current_frames()
    main = threading.main_thread().ident
    frame = frames.get(main) if main is not None else None
    if frame is not None and _module(frame) == BACKWARD:
        python_threads = {thread.ident for thread in threading.enumerate()}
        places = [place_of(other) for ident, other in frames.items() if ident not in python_threads]
        place = next((place for place in places if place != NOWHERE), place_of(frame))
    else:
        place = place_of(frame)
    return replace(place, direction=direction_of(frame))


def place_of(frame: FrameType | None) -> Place:
    """Returns the innermost frame of our own packages from `frame` outwards; it waits if it or its callee does."""
    is_waiting = False
    while frame is not None:
        module = _module(frame)
        is_waiting = is_waiting or (_below(module, WAITING) and frame.f_code.co_name != "<module>")
        if _below(module, OWN) and module not in ON_BEHALF:
            return Place(_shown(frame, module), is_waiting)
        frame = frame.f_back
    return NOWHERE


def direction_of(frame: FrameType | None) -> str:
    """Returns the direction of the pass that a frame is in. What runs again in a backward pass is part of that."""
    direction = ""
    while frame is not None:
        module = _module(frame)
        if module == BACKWARD:
            return "backward"
        if _below(module, FORWARD):
            direction = "forward"
        frame = frame.f_back
    return direction


class Sampler:
    """Keeps the last place of the main thread, and the share of the last seconds in which it waited."""

    def __init__(self, every_s: float, window_s: float) -> None:
        """Expects a sample every `every_s` seconds, and keeps those of the last `window_s`."""
        self.place = NOWHERE
        self._every_s, self._window_s = every_s, window_s
        self._samples: deque[tuple[float, float, float]] = deque()
        """Of each: when it was taken, the seconds it stands for, and how many of these were spent waiting."""

    def sample(self, now: float) -> None:
        """Take a sample at `now`, in seconds.

        If a sample is late, the process did not run or did not release Python's lock; the delay does not count as
        waiting for others.
        """
        self.place = main_thread_place()
        seconds = now - self._samples[-1][0] if self._samples else self._every_s
        self._samples.append((now, seconds, min(seconds, self._every_s) if self.place.is_waiting else 0.0))
        while self._samples[0][0] < now - self._window_s:
            self._samples.popleft()

    @property
    def waiting(self) -> float:
        """Returns the share of the kept time, 0 to 1, in which the main thread waited for another worker."""
        total = sum(seconds for _, seconds, _ in self._samples)
        return sum(waited for _, _, waited in self._samples) / total if total else 0.0


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _below(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _shown(frame: FrameType, module: str) -> str:
    package, *inner = module.split(".")
    path = "/".join(inner if package == "moe_train" else [package, *inner])
    return f"{path}.py:{frame.f_lineno} {frame.f_code.co_name}"
