"""Writes a worker's heartbeat every second, from a thread that also reads requests to stop or end.

A rank that hangs keeps its heartbeat, with the line where it hangs; a C thread, which needs no Python lock, writes its
stacks to stacks.txt. Of a rank without a heartbeat only the last one is known. All files are those of
`moe_cluster.contract`. Imports no torch.
"""

import faulthandler
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from moe_cluster.atomic import replace_text
from moe_cluster.contract import (
    COLLECTIVES_FILE,
    ENDED,
    HEARTBEAT_FILE,
    STACKS_FILE,
    attempt_dir,
    rank_dir,
    requested_end,
    requested_stop,
)
from moe_train.worker.collectives import pending, recorded_collectives
from moe_train.worker.progress import Progress
from moe_train.worker.whereabouts import Sampler

logger = logging.getLogger(__name__)

SAMPLES_A_BEAT = 5
BEAT_EVERY_S = 1.0
WINDOW_S = 5.0
"""The share of time spent waiting is measured over the last few seconds."""
BEATS_A_LOOK = 5
"""A newer attempt is looked for once in this many beats: all workers share that file system."""
LONGEST_GOODBYE_S = 5.0
"""The longest wait at exit for a heartbeat that a dead file system does not take."""
LOOK_AFTER = 0.5
"""The share of the patience after which a heartbeat names the collective that the worker waits in."""
DUMP_AFTER = 0.8
"""The share of the patience after which stacks are written, before the launcher ends a hanging attempt."""


class Heartbeat:
    """Keeps the heartbeat of one rank of an attempt, from `start` to `end`."""

    def __init__(
        self,
        run_dir: Path,
        attempt: int,
        rank: int,
        progress: Progress,
        on_end: Callable[[str], None],
        on_stop: Callable[[], None] = lambda: None,
    ) -> None:
        """Both callbacks run in the heartbeat's thread: `on_end` gets the reason why this process has to end at once,
        `on_stop` is called when stop.json asks it to stop."""
        self._run_dir, self._attempt = run_dir, attempt
        self._folder = rank_dir(run_dir, attempt, rank)
        self._progress, self._on_end, self._on_stop = progress, on_end, on_stop
        self._sampler = Sampler(BEAT_EVERY_S / SAMPLES_A_BEAT, WINDOW_S)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._stacks: IO[str] | None = None
        self._armed: tuple[float, float | None] | None = None
        self._has_dumped = False
        self._has_logged_stop = False
        self._stop_reason: str | None = None

    def start(self) -> None:
        """Beat once, here, then every second in the background."""
        self._write()
        self._thread.start()

    def end(self) -> None:
        """Stop beating, after a last heartbeat."""
        self._ended.set()
        self._thread.join(LONGEST_GOODBYE_S)
        faulthandler.cancel_dump_traceback_later()
        self._write()
        with suppress(OSError):
            if self._stacks is not None:
                self._stacks.close()
                if (self._folder / STACKS_FILE).stat().st_size == 0:
                    (self._folder / STACKS_FILE).unlink()

    @property
    def stop_reason(self) -> str | None:
        """Returns the reason of a stop request, by `ask_to_stop` or by stop.json; None without one."""
        return self._stop_reason

    def ask_to_stop(self, reason: str) -> None:
        """Request a stop; the first reason is kept. Safe in a signal handler."""
        self._stop_reason = self._stop_reason or reason

    def facts(self) -> dict[str, Any]:
        """Returns the worker's identity and step, for heartbeat.json and error.json."""
        return {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "step": self._progress.step,
            "time": time.time(),
        }

    def _beat(self) -> None:
        number, has_written_first_step = 0, False
        while not self._ended.wait(BEAT_EVERY_S / SAMPLES_A_BEAT):
            self._sampler.sample(time.monotonic())
            number += 1
            if not has_written_first_step and self._progress.step is not None:
                has_written_first_step = True  # at once, so that its death now counts as after the first step
                self._write()
            if number % SAMPLES_A_BEAT == 0:
                self._write()
                self._watch_stacks()
                self._check_stop()
                self._check_end()
            if number % (SAMPLES_A_BEAT * BEATS_A_LOOK) == 0:
                self._check_newer_attempt()

    def _write(self) -> None:
        progress = self._progress
        content = {
            **self.facts(),
            "step_time": progress.step_time,
            "phase": ENDED if self._ended.is_set() else progress.phase,
            "parts": progress.parts,
            "is_paced": progress.is_paced,
            "patience_s": progress.patience_s,
            "where": self._sampler.place.where,
            "layer": self._layer(),
            "collective": self._collective(),
            "waiting": round(self._sampler.waiting, 2),
            "stop": self._stop_reason,
        }
        try:
            replace_text(self._folder / HEARTBEAT_FILE, json.dumps(content) + "\n")
        except OSError as error:
            logger.warning("heartbeat.json could not be written (%s)", error.strerror)

    def _layer(self) -> str | None:
        layer, direction = self._progress.layer, self._sampler.place.direction
        return f"{layer} {direction}" if layer and direction else None

    def _collective(self) -> str | None:
        """Returns the collective of a worker that has made no progress for long; else it would change all the time."""
        progress = self._progress
        patience_s = progress.patience_s
        if patience_s is None or time.monotonic() - progress.since < LOOK_AFTER * patience_s:
            return None
        return pending(recorded_collectives(), progress.axes)

    def _watch_stacks(self) -> None:
        """Restart the timer that dumps all stacks if there was progress; write the collectives if it has run out."""
        since, patience_s = self._progress.since, self._progress.patience_s
        if patience_s is None:
            return
        if (since, patience_s) != self._armed:
            self._armed, self._has_dumped = (since, patience_s), False
            left_s = DUMP_AFTER * patience_s - (time.monotonic() - since)
            self._arm(max(left_s, 0.1))
        elif not self._has_dumped and time.monotonic() - since > DUMP_AFTER * patience_s:
            self._has_dumped = True
            self._write_collectives()

    def _arm(self, after_s: float) -> None:
        if self._stacks is None:
            try:
                self._stacks = (self._folder / STACKS_FILE).open("a")
            except OSError as error:
                logger.warning("%s could not be opened (%s)", STACKS_FILE, error.strerror)
                return
        faulthandler.dump_traceback_later(after_s, file=self._stacks)

    def _write_collectives(self) -> None:
        """Write the last collectives in torch's flight recorder, of gloo and NCCL."""
        with suppress(OSError):
            replace_text(self._folder / COLLECTIVES_FILE, recorded_collectives())

    def _check_stop(self) -> None:
        if self._stop_reason is None:
            self._stop_reason = requested_stop(self._run_dir, self._attempt)
            if self._stop_reason is not None:
                self._on_stop()
        if self._stop_reason is not None and not self._has_logged_stop:
            self._has_logged_stop = True
            logger.debug("asked to stop: %s", self._stop_reason)

    def _check_end(self) -> None:
        reason = requested_end(self._run_dir, self._attempt)
        if reason is not None:
            self._on_end(f"the launcher ends attempt {self._attempt}: {reason}")

    def _check_newer_attempt(self) -> None:
        newer = self._attempt + 1
        if attempt_dir(self._run_dir, newer).exists():
            self._on_end(
                f"{self._run_dir}: attempt {self._attempt} is superseded by attempt {newer}, so this worker ends; "
                "nothing is lost: the newer attempt resumes from the last checkpoint"
            )
