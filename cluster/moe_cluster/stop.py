"""Turns the signals that a launcher gets while it makes attempts into a request to stop."""

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
    """Holds whether the run has to stop, and how."""

    is_requested: bool = False
    is_urgent: bool = False
    """A second Ctrl-C: end at once, without a checkpoint."""
    is_time_limit: bool = False
    """SIGUSR1: the scheduler is about to end the job, which may be queued again."""

    def wait(self, seconds: float) -> bool:
        """Wait for `seconds`, or until a stop is requested; returns `is_requested`."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.is_requested:
            time.sleep(POLL_S)
        return self.is_requested


@contextlib.contextmanager
def stop_on_signals(say: Callable[[str], None]) -> Iterator[StopRequest]:
    """Turns SIGINT, SIGTERM, SIGHUP and SIGUSR1 into a request; only a second SIGINT makes it urgent.

    Clusters repeat SIGTERM while they wait for a job to save, so a repeated one is ignored.
    """
    stop = StopRequest()

    def receive(number: int, frame: FrameType | None) -> None:
        if stop.is_requested and number == signal.SIGINT:
            stop.is_urgent = True
        elif not stop.is_requested:
            stop.is_requested, stop.is_time_limit = True, number == signal.SIGUSR1
            reason = "the time limit is near" if stop.is_time_limit else "stopping"
            say(
                f"{reason}: the workers save at the next step, or exit now if training has not begun (Ctrl-C again "
                "ends them at once, unsaved)"
            )

    before = {number: signal.signal(number, receive) for number in (*stop_signals(), signal.SIGUSR1)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
