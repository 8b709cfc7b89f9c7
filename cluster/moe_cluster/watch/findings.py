"""Describes hangs, stragglers and failed starts of an attempt in sentences, and records them.

Findings are lines of attempts/K/findings.jsonl, which the first cause of a failure and `moe-train status` read.
`watch.py` detects them.
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
    """Describes a rank that others wait for, or that has no heartbeat."""

    rank: int
    host: str
    """Empty without a heartbeat."""
    what: str
    """Its state, as the end of a sentence."""

    def __str__(self) -> str:
        return f"rank {self.rank}{f' on {self.host}' if self.host else ''}: {self.what}"


@dataclass(frozen=True)
class Wait:
    """Describes ranks that wait in the same operation."""

    ranks: tuple[int, ...]
    operation: str
    """Names what they wait in: a collective, its layer, and the line of our code."""

    def __str__(self) -> str:
        return f"{named(self.ranks)} for it in {self.operation}"


@dataclass(frozen=True)
class Hang:
    """Reports that no rank makes steps any more. The attempt has to end."""

    suspects: tuple[Suspect, ...]
    """Ascending by rank; all ranks, if each waits for another one."""
    waiting: tuple[Wait, ...]
    """Those that wait for them."""
    step: int | None
    """The last step; None before the first."""
    seconds: float
    """Time without a step."""

    def __str__(self) -> str:
        when = "before the first step" if self.step is None else f"after step {self.step}"
        return f"the run hangs {when}: {self.what}"

    @property
    def what(self) -> str:
        """Returns the state of the suspects, as the end of a sentence."""
        shown = "; ".join(map(str, self.suspects[:SHOWN])) + _more(len(self.suspects))
        victims = "".join(f"; {wait}" for wait in self.waiting[:SHOWN])
        return f"no step for {self.seconds:.0f} s: {shown}{victims}"


@dataclass(frozen=True)
class Straggler:
    """Reports a rank that all others wait for in every step. The run continues at its speed."""

    rank: int
    host: str
    where: str
    waiting: float
    """The least share of their time that the others spend waiting."""
    seconds: float
    """How long it has been so."""

    def __str__(self) -> str:
        return (
            f"rank {self.rank} on {self.host} is slow: for {self.seconds:.0f} s all other ranks have spent at least "
            f"{self.waiting:.0%} of their time waiting, and it hardly any (it is at {self.where}); check what else "
            "runs on its host"
        )


@dataclass(frozen=True)
class NoStart:
    """Reports that no worker has read its recipe. The attempt has to end."""

    seconds: float
    """Time since the attempt began."""
    why: str
    """The cause, as the end of a sentence; empty if it is unknown."""

    def __str__(self) -> str:
        return (
            f"no worker has started within {self.seconds:.0f} s{self.why and ': '}{self.why}; raise job.timeout_s if "
            "workers take longer to start here"
        )


Finding = Hang | Straggler | NoStart
SHOWN = 8
"""The number of ranks that a sentence names."""


def named(ranks: Sequence[int]) -> str:
    """Returns the beginning of a sentence about waiting ranks: "ranks 0, 2, 3 wait"."""
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
    """Returns the findings of an attempt in the order in which `record` wrote them: the fields of each, `kind`, `time`
    (seconds since 1970) and `text`. A line cut short by a full disk or a kill is skipped."""
    path = attempt / FINDINGS_FILE
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return [finding for line in lines if (finding := _parsed(line))]


def _parsed(line: str) -> dict[str, Any]:
    try:
        return dict(json.loads(line))
    except (ValueError, TypeError):
        return {}


def recorded_hang(attempt: Path) -> tuple[Hang, float] | None:
    """Returns the hang that ended an attempt and its time in seconds since 1970; None if there was none."""
    for finding in recorded(attempt):
        if finding["kind"] == "hang":
            suspects = tuple(Suspect(**suspect) for suspect in finding["suspects"])
            waiting = tuple(Wait(tuple(wait["ranks"]), wait["operation"]) for wait in finding["waiting"])
            hang = Hang(suspects, waiting, finding["step"], finding["seconds"])
            return hang, finding["time"]
    return None


def recorded_no_start(attempt: Path) -> str:
    """Returns the recorded reason why no worker of an attempt started; empty if there is none."""
    return next((finding["text"] for finding in recorded(attempt) if finding["kind"] == "nostart"), "")


def _more(number: int) -> str:
    return f" and {number - SHOWN} more" if number > SHOWN else ""
