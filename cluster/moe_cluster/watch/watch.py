"""Watches the workers of one attempt by their heartbeats: who hangs, and who holds the others up.

A launcher of any kind asks every now and then (`tell`) and ends the attempt when told to. Ages are taken by the
launcher's own clock, from when it saw something change, so clocks of different hosts are never compared. How patient
to be the workers say themselves: they know what they do (`contract.py`, `patience_s`).
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
from moe_cluster.watch.findings import Finding, Hang, NoStart, Straggler, Suspect, record
from moe_cluster.watch.launcher_logs import why_none_started

LOOKS_A_PATIENCE = 20
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 5.0
"""Between two looks at the files, of which there is one for each rank."""
WAITS = 0.5
"""A rank that spends more of its time waiting for others is held up."""
HOLDS_UP = 0.5
"""A rank that waits less than this part of what any other does, while all others are held up, holds them up. Not none
at all: a process that is stopped again and again is found where it stood, which may be in a wait."""
MOSTLY = 0.8
"""Of the looks in which a straggler must be the same rank."""
TRAINING = "training"


@dataclass(frozen=True)
class Heartbeat:
    """heartbeat.json of one rank."""

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
    waiting: float = 0.0


class Watch:
    """Of an attempt of so many workers."""

    def __init__(self, run_dir: Path, number: int, workers: int, start_s: float = math.inf) -> None:
        """`number`: of the attempt. `start_s`: how long it may take until the first worker has read its recipe, from
        the first look on."""
        self.run_dir, self.number, self.workers = run_dir, number, workers
        self.folder = attempt_dir(run_dir, number)
        self._start_s = start_s
        self._began: float | None = None
        self._next_look = 0.0
        self._heard: dict[
            int, tuple[float, float]
        ] = {}  # rank: the time in its heartbeat, and when we saw it
        self._state: object = None
        self._since = 0.0  # when we saw the state change last
        self._slowest: deque[tuple[float, int | None]] = deque()
        self._told: set[int] = set()

    def tell(self, say: Callable[[str], None]) -> bool:
        """Look if it is time to, and record what is found; returns whether the attempt was told to end.

        The workers that still can then end by themselves, on whatever host; who cannot is left to the launcher. `say`
        is given what does not end the attempt; the rest is told as the first cause of its end, like any failure.
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
            except OSError as error:  # the disk may be full: workers that cannot be asked are killed
                say(f"{finding} (this could not be written to {self.folder}: {error.strerror})")
            else:
                if not is_hang:
                    say(str(finding))
            if is_hang:
                self._next_look = math.inf
        return self._next_look == math.inf

    def look(self, beats: Mapping[int, Heartbeat], now: float) -> list[Finding]:
        """What these heartbeats, seen at `now` (seconds of any clock that only goes forward), add to what is known."""
        self._began = now if self._began is None else self._began
        patiences = [beat.patience_s for beat in beats.values() if beat.patience_s is not None]
        has_ended = any(beat.phase == ENDED for beat in beats.values())
        if has_ended or any(self.folder.glob(f"rank-*/{ERROR_FILE}")):
            return []  # a rank is leaving or has failed, and how that ends is not for us to say
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
        found = {}
        for rank in range(self.workers):
            try:
                content = json.loads((self.folder / f"rank-{rank}" / HEARTBEAT_FILE).read_text())
            except (
                OSError,
                ValueError,
            ):  # not there yet; or the file system does not answer: that is silence
                continue
            found[rank] = _heartbeat(content)
        return found

    def _silent(self, beats: Mapping[int, Heartbeat], now: float, after_s: float) -> dict[int, float]:
        """Ranks whose heartbeat has stopped for longer than `after_s`, or never came, and for how long."""
        for rank in range(self.workers):
            told = beats[rank].time if rank in beats else 0.0
            if self._heard.get(rank, (None, 0.0))[0] != told:
                self._heard[rank] = (told, now)
        ages = {rank: now - seen for rank, (_, seen) in self._heard.items()}
        return {rank: age for rank, age in ages.items() if age > after_s}

    def _hang(
        self, beats: Mapping[int, Heartbeat], silent: Mapping[int, float], waiting: list[int], now: float
    ) -> Hang:
        ranks = list(range(self.workers))
        suspects = sorted(silent) or [rank for rank in ranks if rank not in waiting] or ranks
        return Hang(
            suspects=tuple(_suspect(rank, beats.get(rank), silent.get(rank)) for rank in suspects),
            waiting=tuple(rank for rank in waiting if rank not in suspects),
            step=max((beat.step for beat in beats.values() if beat.step is not None), default=None),
            seconds=now - self._since,
        )

    def _straggler(self, beats: Mapping[int, Heartbeat], now: float, for_s: float) -> list[Finding]:
        """A rank that was the slowest in most of the looks of the last `for_s` seconds; told once."""
        self._slowest.append((now, _slowest(beats)))
        while len(self._slowest) > 1 and self._slowest[1][0] <= now - for_s:
            self._slowest.popleft()  # but for the one look before those seconds: looks may be far between
        (rank, times), *_ = Counter(rank for _, rank in self._slowest).most_common()
        is_long_enough = now - self._slowest[0][0] > MOSTLY * for_s
        if rank is None or rank in self._told or not is_long_enough or times < MOSTLY * len(self._slowest):
            return []
        self._told.add(rank)
        least = min(beat.waiting for other, beat in beats.items() if other != rank)
        return [Straggler(rank, beats[rank].host, beats[rank].where, least, for_s)]


def _patience(beats: Mapping[int, Heartbeat], silent: Mapping[int, float]) -> float:
    """That of the most patient rank which still tells of itself: what a silent one did last it may have ended since."""
    speaking = [beat for rank, beat in beats.items() if rank not in silent] or list(beats.values())
    return max(beat.patience_s or 0.0 for beat in speaking)


def _slowest(beats: Mapping[int, Heartbeat]) -> int | None:
    """The one rank that does not wait while all others do."""
    busy = [rank for rank, beat in beats.items() if beat.waiting <= WAITS]
    if len(beats) < 2 or len(busy) != 1:
        return None
    (slowest,) = busy
    least = min(beat.waiting for rank, beat in beats.items() if rank != slowest)
    return slowest if beats[slowest].waiting < HOLDS_UP * least else None


def _suspect(rank: int, beat: Heartbeat | None, silent_s: float | None) -> Suspect:
    if beat is None:
        return Suspect(rank, "", "has never told of itself; its host or its start failed")
    if silent_s is None:
        verb = "waits, as all others do," if beat.waiting > WAITS else "does not wait for others:"
        return Suspect(rank, beat.host, f"{verb} it is at {beat.where}")
    # Both are the host's own name: Slurm may have several nodes on one host, and a process id is the host's.
    state = state_of(beat.pid) if beat.host == socket.gethostname() else "its host may be gone or cut off"
    return Suspect(rank, beat.host, f"is silent for {silent_s:.0f} s, it was last at {beat.where}; {state}")


def _heartbeat(content: Mapping[str, Any]) -> Heartbeat:
    known = {name: content[name] for name in Heartbeat.__dataclass_fields__ if name in content}
    return Heartbeat(**known)
