"""How far a worker has come, in which phase it is, and how long that phase may last without progress.

The heartbeat tells the launcher; the patience is decided here because the worker knows its recipe and how long its
steps take. A step that never ends is told from one that takes long by those before it.
"""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

STARTING, TRAINING, VALIDATING, TRANSLATING, CHECKPOINT, ENDING = (
    "starting",
    "training",
    "validating",
    "translating",
    "checkpoint",
    "ending",
)

STRETCH = 5
"""A step may take so many times as long as the longest of the last ones."""
REMEMBERED_STEPS = 20


class Progress:
    """Of one worker. Its main thread writes, its heartbeat reads."""

    def __init__(self) -> None:
        self.step: int | None = None
        self.step_time: float | None = None
        """When the last step ended, in seconds since 1970."""
        self.phase = STARTING
        self.parts = 0
        """Done of the phase, such as batches of a validation."""
        self.since = time.monotonic()
        """When the last step or part ended or the phase began."""
        self._hang_s: float | None = None
        self._timeout_s = 0.0
        self._step_seconds: deque[float] = deque(maxlen=REMEMBERED_STEPS)

    def expect(self, hang_s: float, timeout_s: float) -> None:
        """From now on a step takes `hang_s` at most, and what is no step `timeout_s`."""
        self._hang_s, self._timeout_s = hang_s, timeout_s

    def made(self, step: int) -> None:
        """`step` is done. The first one ends the start: it builds and warms up what later ones find ready."""
        now = time.monotonic()
        if self.phase == TRAINING:
            self._step_seconds.append(now - self.since)
        self.step, self.step_time, self.phase, self.since = step, time.time(), TRAINING, now

    def made_part(self) -> None:
        """A part of the phase is done."""
        self.parts, self.since = self.parts + 1, time.monotonic()

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """A block that is a phase of its own, unless the worker is still starting."""
        before = self.phase
        if before != STARTING:
            self.phase, self.since = phase, time.monotonic()
        try:
            yield
        finally:
            self.phase, self.parts, self.since = before, 0, time.monotonic()

    def end(self) -> None:
        """There will be no more steps: what is left is to leave."""
        self.phase, self.since = ENDING, time.monotonic()

    @property
    def is_paced(self) -> bool:
        """The phase goes forward in steps, or in parts that take no longer than one."""
        return self.phase in (TRAINING, VALIDATING)

    @property
    def patience_s(self) -> float | None:
        """How long the phase may go on without progress before it counts as a hang; None: not known yet."""
        if self._hang_s is None:
            return None
        if not self.is_paced:
            return max(self._hang_s, self._timeout_s)
        return max(self._hang_s, STRETCH * max(self._step_seconds, default=0.0))
