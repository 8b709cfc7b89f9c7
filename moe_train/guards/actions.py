"""What a guard may ask for. Actions are data: recovery.py takes them, and each becomes a row of metrics.jsonl."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Warn:
    """Reports a `warning`; training continues unchanged."""

    reason: str


@dataclass(frozen=True)
class Scale:
    """Multiplies one of the run's controls by a factor, in place of the factor it had."""

    reason: str
    control: str
    """`lr`, or `losses.NAME` for the coefficient of an auxiliary loss."""
    factor: float
    until_step: int | None = None
    """The last update with this factor; None: the last of the run."""


@dataclass(frozen=True)
class RollBack:
    """Resumes from an earlier checkpoint, with the batches that come next."""

    reason: str
    newest_step: int
    """The newest step whose checkpoint may be used."""
    otherwise: str | None = None
    """The event to report, and continue, if there is no such checkpoint; None: the run ends."""


@dataclass(frozen=True)
class Stop:
    """Ends the run as failed."""

    reason: str


Action = Warn | Scale | RollBack | Stop
