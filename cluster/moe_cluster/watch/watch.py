"""Watches the workers of one attempt by their heartbeats, and reports hangs and stragglers.

Every launcher calls `check` in its loop and ends the attempt if that returns True. Ages are measured by the launcher's
own clock, from when it saw something change, so clocks of different hosts are never compared. The workers report how
long they may take (`contract.py`, `patience_s`), because they know what they do.
"""

import json
import math
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_cluster.contract import ENDED, ERROR_FILE, HEARTBEAT_FILE, attempt_dir, request_end
from moe_cluster.linux import state_of
from moe_cluster.watch.findings import Finding, Hang, NoStart, Straggler, Suspect, Wait, record
from moe_cluster.watch.launcher_logs import why_none_started

LOOKS_A_PATIENCE = 20
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 5.0
"""Seconds between two reads of the heartbeats, one file for each rank."""
WAITS = 0.5
"""A rank is held up if it spends more than this share of its time waiting for others."""
HOLDS_UP = 0.5
"""A straggler waits less than this part of what any other rank does, while all others are held up. It may wait at all:
a process that is stopped again and again is sampled where it stopped, which may be in a wait."""
MOSTLY = 0.8
"""Share of the reads in which a straggler must be the same rank."""
TRAINING = "training"


@dataclass(frozen=True)
class Heartbeat:
    """Holds the heartbeat.json of one rank."""

    pid: int
    host: str
    time: float
    step: int | None = None
    step_time: float | None = None
    phase: str = "starting"
    parts: int = 0
    is_paced: bool = False
    patience_s: float | None = None
    where: str = "an unknown place"
    layer: str | None = None
    collective: str | None = None
    waiting: float = 0.0

    @property
    def place(self) -> str:
        """Returns where the worker is: the line, and the layer of the model if it is in one."""
        return f"{self.where} of {self.layer}" if self.layer else self.where

    @property
    def operation(self) -> str:
        """Returns what a waiting worker waits in."""
        return f"{self.collective} at {self.place}" if self.collective else self.place


class Watch:
    """Watches one attempt."""

    def __init__(self, run_dir: Path, number: int, workers: int, start_s: float = math.inf) -> None:
        """`number`: of the attempt. `start_s`: how long the first worker may take to read its recipe, counted from the
        first check."""
        self.run_dir, self.number, self.workers = run_dir, number, workers
        self.folder = attempt_dir(run_dir, number)
        self._start_s = start_s
        self._began: float | None = None
        self._next_look = 0.0
        # Rank -> the time in its heartbeat, and when we first saw that.
        self._last_beats: dict[int, tuple[float, float]] = {}
        self._state: object = None
        self._since = 0.0  # when we last saw the state change
        self._slowest: deque[tuple[float, int | None]] = deque()
        self._reported: set[int] = set()

    def check(self, say: Callable[[str], None]) -> bool:
        """Read the heartbeats if it is time to, and record findings; returns whether the attempt has to end.

        Workers that can then end by themselves, on any host; the launcher kills the others. `say` gets the findings
        that do not end the attempt; one that does is reported as the first cause of its end.
        """
        now = time.monotonic()
        if now < self._next_look:
            return self._next_look == math.inf
        beats = self._read()
        findings = self.look(beats, now)
        shortest_s = min((beat.patience_s for beat in beats.values() if beat.patience_s), default=0.0)
        pause_s = max(shortest_s / LOOKS_A_PATIENCE, SHORTEST_PAUSE_S)
        self._next_look = now + min(pause_s, LONGEST_PAUSE_S)
        for finding in findings:
            is_hang = isinstance(finding, Hang | NoStart)
            try:
                record(self.folder, finding)
                if is_hang:
                    request_end(self.run_dir, self.number, str(finding))
            except OSError as error:  # the disk may be full: the launcher kills workers that cannot be asked
                say(f"{finding} (this could not be written to {self.folder}: {error.strerror})")
            else:
                if not is_hang:
                    say(str(finding))
            if is_hang:
                self._next_look = math.inf
        return self._next_look == math.inf

    def look(self, beats: Mapping[int, Heartbeat], now: float) -> list[Finding]:
        """Returns the findings in these heartbeats, read at `now` (seconds of any monotonic clock)."""
        self._began = now if self._began is None else self._began
        patiences = [beat.patience_s for beat in beats.values() if beat.patience_s is not None]
        has_ended = any(beat.phase == ENDED for beat in beats.values())
        if has_ended or any(self.folder.glob(f"rank-*/{ERROR_FILE}")):
            return []  # a rank is leaving or has failed, which its launcher handles
        if not patiences:
            is_late = now - self._began >= self._start_s
            return [NoStart(now - self._began, why_none_started(self.folder))] if is_late else []
        silent = self._silent(beats, now, min(patiences) / 2)
        patience_s = _patience(beats, silent)
        waiting = [rank for rank, beat in beats.items() if rank not in silent and beat.waiting > WAITS]
        is_paced = all(beat.is_paced for beat in beats.values())
        state = (
            {rank: (beat.step_time, beat.phase, beat.parts) for rank, beat in beats.items()},
            None if is_paced else waiting,
        )
        has_changed = state != self._state
        if has_changed:
            self._state, self._since = state, now
        if now - self._since >= patience_s and (is_paced or silent or waiting):
            return [self._hang(beats, silent, waiting, now)]
        is_training = all(beat.phase == TRAINING for beat in beats.values())
        is_stepping = has_changed and is_training and not silent
        return self._straggler(beats, now, patience_s) if is_stepping else []

    def _read(self) -> dict[int, Heartbeat]:
        beats = {}
        for rank in range(self.workers):
            try:
                content = json.loads((self.folder / f"rank-{rank}" / HEARTBEAT_FILE).read_text())
            except (OSError, ValueError):  # not there yet, or the file system does not answer
                continue
            beats[rank] = _heartbeat(content)
        return beats

    def _silent(self, beats: Mapping[int, Heartbeat], now: float, after_s: float) -> dict[int, float]:
        """Returns the ranks without a new heartbeat for more than `after_s`, and for how long."""
        for rank in range(self.workers):
            beat_time = beats[rank].time if rank in beats else 0.0
            if self._last_beats.get(rank, (None, 0.0))[0] != beat_time:
                self._last_beats[rank] = (beat_time, now)
        ages = {rank: now - first_seen for rank, (_, first_seen) in self._last_beats.items()}
        return {rank: age for rank, age in ages.items() if age > after_s}

    def _hang(
        self, beats: Mapping[int, Heartbeat], silent: Mapping[int, float], waiting: list[int], now: float
    ) -> Hang:
        ranks = list(range(self.workers))
        suspects = sorted(silent) or [rank for rank in ranks if rank not in waiting] or ranks
        return Hang(
            suspects=tuple(_suspect(rank, beats.get(rank), silent.get(rank)) for rank in suspects),
            waiting=_waits({rank: beats[rank] for rank in waiting if rank not in suspects}),
            step=max((beat.step for beat in beats.values() if beat.step is not None), default=None),
            seconds=now - self._since,
        )

    def _straggler(self, beats: Mapping[int, Heartbeat], now: float, for_s: float) -> list[Finding]:
        """Finds a rank that was the slowest in most reads of the last `for_s` seconds; reports it once."""
        self._slowest.append((now, _slowest(beats)))
        while len(self._slowest) > 1 and self._slowest[1][0] <= now - for_s:
            self._slowest.popleft()  # keeps one read from before those seconds: reads may be far apart
        (rank, times), *_ = Counter(rank for _, rank in self._slowest).most_common()
        is_long_enough = now - self._slowest[0][0] > MOSTLY * for_s
        if (
            rank is None
            or rank in self._reported
            or not is_long_enough
            or times < MOSTLY * len(self._slowest)
        ):
            return []
        self._reported.add(rank)
        least = min(beat.waiting for other, beat in beats.items() if other != rank)
        return [Straggler(rank, beats[rank].host, beats[rank].where, least, for_s)]


def _patience(beats: Mapping[int, Heartbeat], silent: Mapping[int, float]) -> float:
    """Returns the longest patience of the ranks with a heartbeat; a silent one may have left its last phase since."""
    speaking = [beat for rank, beat in beats.items() if rank not in silent] or list(beats.values())
    return max(beat.patience_s or 0.0 for beat in speaking)


def _slowest(beats: Mapping[int, Heartbeat]) -> int | None:
    """Returns the one rank that does not wait while all others do; None if there is no such rank."""
    busy = [rank for rank, beat in beats.items() if beat.waiting <= WAITS]
    if len(beats) < 2 or len(busy) != 1:
        return None
    (slowest,) = busy
    least = min(beat.waiting for rank, beat in beats.items() if rank != slowest)
    return slowest if beats[slowest].waiting < HOLDS_UP * least else None


def _waits(beats: Mapping[int, Heartbeat]) -> tuple[Wait, ...]:
    """Returns the waiting ranks by what they wait in, that of the lowest rank first."""
    ranks: dict[str, list[int]] = {}
    for rank, beat in sorted(beats.items()):
        ranks.setdefault(beat.operation, []).append(rank)
    return tuple(Wait(tuple(waiting), operation) for operation, waiting in ranks.items())


def _suspect(rank: int, beat: Heartbeat | None, silent_s: float | None) -> Suspect:
    if beat is None:
        return Suspect(rank, "", "no heartbeat yet; its host or its start failed")
    if silent_s is None:
        action = "waits, as all others do" if beat.waiting > WAITS else "does not wait for others"
        return Suspect(rank, beat.host, f"{action}; it is at {beat.operation}")
    # Both are the host's own name: Slurm may have several nodes on one host, and a process id is the host's.
    state = state_of(beat.pid) if beat.host == socket.gethostname() else "its host may be down or cut off"
    return Suspect(rank, beat.host, f"no heartbeat for {silent_s:.0f} s; last seen at {beat.place}; {state}")


def _heartbeat(content: Mapping[str, Any]) -> Heartbeat:
    fields = {name: content[name] for name in Heartbeat.__dataclass_fields__ if name in content}
    return Heartbeat(**fields)
