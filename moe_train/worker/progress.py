"""Tracks a worker's step and phase, and decides how long that phase may last without progress.

The heartbeat reports it to the launcher. The patience is decided here because the worker knows its recipe and the
duration of its steps: a step hangs if it takes several times as long as those before it.
"""

import time
from collections import deque
from collections.abc import Iterator, Mapping
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
"""A step may take this many times as long as the longest of the last ones."""
REMEMBERED_STEPS = 20


class Progress:
    """Holds the progress of one worker. Its main thread writes it, its heartbeat reads it."""

    def __init__(self) -> None:
        self.step: int | None = None
        self.step_time: float | None = None
        """When the last step ended, in seconds since 1970."""
        self.phase = STARTING
        self.parts = 0
        """Parts of the phase that are done, such as batches of a validation."""
        self.since = time.monotonic()
        """When the last step or part ended or the phase began."""
        self.layer: str | None = None
        """The layer that a pass through the model has reached, or that the last one ended in."""
        self.axes: Mapping[str, str] = {}
        """The axis of the mesh by the name of its process group."""
        self._hang_s: float | None = None
        self._timeout_s = 0.0
        self._step_seconds: deque[float] = deque(maxlen=REMEMBERED_STEPS)

    def expect(self, hang_s: float, timeout_s: float) -> None:
        """Set the limits: a step may take `hang_s`, any other phase `timeout_s`."""
        self._hang_s, self._timeout_s = hang_s, timeout_s

    def made(self, step: int) -> None:
        """Record that `step` is done. The first one ends the start-up, and is not timed because it warms up."""
        now = time.monotonic()
        if self.phase == TRAINING:
            self._step_seconds.append(now - self.since)
        self.step, self.step_time, self.phase, self.since = step, time.time(), TRAINING, now

    def reached(self, layer: str) -> None:
        """Record that a pass has come to this layer, forward or backward."""
        self.layer = layer

    def made_part(self) -> None:
        """Record that a part of the phase is done."""
        self.parts, self.since = self.parts + 1, time.monotonic()

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Runs a block as a phase of its own, unless the worker is still starting."""
        before = self.phase
        if before != STARTING:
            self.phase, self.since = phase, time.monotonic()
        try:
            yield
        finally:
            self.phase, self.parts, self.since = before, 0, time.monotonic()

    def end(self) -> None:
        """Record that there will be no more steps."""
        self.phase, self.since = ENDING, time.monotonic()

    @property
    def is_paced(self) -> bool:
        """Returns whether the phase advances in steps, or in parts that take no longer than one."""
        return self.phase in (TRAINING, VALIDATING)

    @property
    def patience_s(self) -> float | None:
        """Returns how long the phase may last without progress before it counts as a hang; None: not known yet."""
        if self._hang_s is None:
            return None
        if not self.is_paced:
            return max(self._hang_s, self._timeout_s)
        return max(self._hang_s, STRETCH * max(self._step_seconds, default=0.0))
