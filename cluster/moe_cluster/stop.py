"""What a launcher is asked by signals while its workers run, for as long as it makes attempts."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType

from moe_cluster.linux import stop_signals

POLL_S = 0.1


@dataclass
class StopRequest:
    """Whether someone wants the run to end, and how."""

    is_requested: bool = False
    is_urgent: bool = False
    """A second Ctrl-C: end now, save nothing."""
    is_time_limit: bool = False
    """SIGUSR1: the scheduler is about to end the job, which may be queued again."""

    def wait(self, seconds: float) -> bool:
        """Let so much time pass, or less if someone asks meanwhile; returns `is_requested`."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.is_requested:
            time.sleep(POLL_S)
        return self.is_requested


@contextlib.contextmanager
def stop_on_signals(say: Callable[[str], None]) -> Iterator[StopRequest]:
    """Turn SIGINT, SIGTERM, SIGHUP and SIGUSR1 into a request; only a second SIGINT makes it urgent.

    Clusters repeat SIGTERM while they wait for a job to save, so a repeated one means nothing new.
    """
    stop = StopRequest()

    def receive(number: int, frame: FrameType | None) -> None:
        if stop.is_requested and number == signal.SIGINT:
            stop.is_urgent = True
        elif not stop.is_requested:
            stop.is_requested, stop.is_time_limit = True, number == signal.SIGUSR1
            why = "the time limit is near" if stop.is_time_limit else "stopping"
            say(f"{why}: the workers save at their next step (Ctrl-C again ends them at once, unsaved)")

    before = {number: signal.signal(number, receive) for number in (*stop_signals(), signal.SIGUSR1)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
