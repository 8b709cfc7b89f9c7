"""Defines an alarm, and what its explanation may draw on: plain data below detectors and their readers."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from moe_train.config.kinds.router.router import BALANCE_COEFFICIENTS
from moe_train.config.schema import Recipe
from moe_train.monitor.rows import Row

Severity = Literal["notice", "warning", "critical"]


@dataclass(frozen=True)
class Alarm:
    """Says that experts of a layer, or whole layers, or the run, are ill; the content of an event `alarm`."""

    detector: str
    severity: Severity
    layers: Sequence[int]
    """By depth: positions in the lists of a row; none: the run as a whole."""
    experts: Sequence[int]
    """Of the only layer; none where a layer as a whole is ill."""
    since: int
    """The first update of the first window in which it was seen."""
    value: float
    """The worst."""
    limit: float

    def as_fields(self) -> dict[str, Any]:
        """Returns the fields of an event."""
        return asdict(self)


@dataclass(frozen=True)
class Rise:
    """Holds the last time that the learning rate rose from one row to the next, after warm-up: a restart."""

    step: int
    before: float
    after: float


@dataclass(frozen=True)
class Case:
    """Holds an alarm with what its explanation may draw on: a replay has the same, so it says the same."""

    alarm: Alarm
    recipe: Recipe
    row: Row
    """The last one of the window."""
    rise: Rise | None = None

    @property
    def balance(self) -> Mapping[str, float]:
        """Returns the router's balance coefficients by key."""
        router = self.recipe.moe.router
        return {name: getattr(router, name) for name in BALANCE_COEFFICIENTS if hasattr(router, name)}
