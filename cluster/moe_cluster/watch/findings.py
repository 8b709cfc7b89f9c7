"""What a launcher finds out about the workers of an attempt while they run: a hang, a straggler; in sentences and kept.

Findings stand in attempts/K/findings.jsonl, one a line, where the first cause of a failure and `moe-train status` find
them. `watch.py` is who finds them.
"""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FINDINGS_FILE = "findings.jsonl"


@dataclass(frozen=True)
class Suspect:
    """A rank that others wait for, or that does nothing."""

    rank: int
    host: str
    """Empty if it never told of itself."""
    what: str
    """What is known of it, as the end of a sentence that begins with its name."""

    def __str__(self) -> str:
        return f"rank {self.rank}{f' on {self.host}' if self.host else ''} {self.what}"


@dataclass(frozen=True)
class Hang:
    """No rank makes a step any more. The attempt has to end."""

    suspects: tuple[Suspect, ...]
    """Ascending by rank; all ranks, if each waits for another one."""
    waiting: tuple[int, ...]
    """Ranks that wait for them."""
    step: int | None
    """The last step that was made; None before the first."""
    seconds: float
    """Without a step."""

    def __str__(self) -> str:
        when = "before the first step" if self.step is None else f"after step {self.step}"
        return f"the run hangs {when}: {self.what}"

    @property
    def what(self) -> str:
        """Who does what, as the end of a sentence."""
        shown = "; ".join(map(str, self.suspects[:SHOWN])) + _more(len(self.suspects))
        who = f"; {named(self.waiting)} for it" if self.waiting else ""
        return f"no step for {self.seconds:.0f} s: {shown}{who}"


@dataclass(frozen=True)
class Straggler:
    """A rank that all others wait for in every step. The run goes on, at its speed."""

    rank: int
    host: str
    where: str
    waiting: float
    """The least share of their time that the others spend waiting."""
    seconds: float
    """For so long."""

    def __str__(self) -> str:
        return (
            f"rank {self.rank} on {self.host} is slow: for {self.seconds:.0f} s all other ranks have spent "
            f"{self.waiting:.0%} of their time or more waiting, and it hardly any (it is at {self.where}); look at "
            "what else its host does"
        )


@dataclass(frozen=True)
class NoStart:
    """No worker has come so far as to read its recipe. The attempt has to end."""

    seconds: float
    """Since the attempt began."""
    why: str
    """Names the cause and ends the sentence; it is empty if nothing is known."""

    def __str__(self) -> str:
        return (
            f"no worker has started within {self.seconds:.0f} s{self.why and ': '}{self.why}; raise job.timeout_s if "
            "workers take longer to start here"
        )


Finding = Hang | Straggler | NoStart
SHOWN = 8
"""Ranks that a sentence names one by one."""


def named(ranks: Sequence[int]) -> str:
    """Ranks that wait, as the beginning of a sentence: "ranks 0, 2, 3 wait"."""
    listed = ", ".join(map(str, ranks[:SHOWN])) + _more(len(ranks))
    return f"rank {listed} waits" if len(ranks) == 1 else f"ranks {listed} wait"


def record(attempt: Path, finding: Finding) -> None:
    """Add a line to the attempt's findings. Raises OSError."""
    content = {
        "kind": type(finding).__name__.lower(),
        "time": time.time(),
        "text": str(finding),
        **asdict(finding),
    }
    descriptor = os.open(attempt / FINDINGS_FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(descriptor, f"{json.dumps(content)}\n".encode())
    finally:
        os.close(descriptor)


def recorded(attempt: Path) -> list[dict[str, Any]]:
    """What was found in an attempt, as `record` wrote it, the first one first: the fields of a finding, `kind`, `time`
    (seconds since 1970) and `text`. A line that a full disk or a kill has torn tells nothing, and is left out."""
    path = attempt / FINDINGS_FILE
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return [found for line in lines if (found := _parsed(line))]


def _parsed(line: str) -> dict[str, Any]:
    try:
        return dict(json.loads(line))
    except (ValueError, TypeError):
        return {}


def recorded_hang(attempt: Path) -> tuple[Hang, float] | None:
    """The hang that ended an attempt, and when it was found, in seconds since 1970; None if it did not end so."""
    for found in recorded(attempt):
        if found["kind"] == "hang":
            suspects = tuple(Suspect(**suspect) for suspect in found["suspects"])
            hang = Hang(suspects, tuple(found["waiting"]), found["step"], found["seconds"])
            return hang, found["time"]
    return None


def recorded_no_start(attempt: Path) -> str:
    """Returns why an attempt was ended before any worker had started, as it was said; empty if it was not."""
    return next((found["text"] for found in recorded(attempt) if found["kind"] == "nostart"), "")


def _more(number: int) -> str:
    return f" and {number - SHOWN} more" if number > SHOWN else ""
