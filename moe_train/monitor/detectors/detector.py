"""The protocol of a detector, which looks for one kind of illness in the rows of a run, and what all of them share.

Detectors are pure functions of training rows, without what differs by rank (`tokens_per_second`, `memory_bytes`,
times): so they find the same on every rank, after every resume, and when `moe-train monitor --check` replays a run.
A detector says of each place (a layer, or one of its experts) what it sees in a window. What counts as an alarm, with
warm-up, persistence and hysteresis, is said once for all, in alarms.py.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, ClassVar, Literal

from moe_train.config.schema import Recipe
from moe_train.monitor.alarm import Case, Severity
from moe_train.monitor.detectors.window import Window

Place = tuple[int, int]
"""Layer and expert; -1 for the whole run, and for all experts of a layer."""
RUN: Place = (-1, -1)


def of_layer(layer: int) -> Place:
    """Returns the place of a whole layer."""
    return (layer, -1)


@dataclass(frozen=True)
class Sight:
    """Holds what a detector sees of a place in a window."""

    value: float
    limit: float
    is_ill: bool
    is_well: bool
    """Well by a margin: between the two an alarm neither begins nor ends."""
    severity: Severity = "warning"


WELL = Sight(0.0, 0.0, is_ill=False, is_well=True)
"""Stands for a place that a detector has left out, as it is well."""


def above(value: float, limit: float, margin: float = 0.8, severity: Severity = "warning") -> Sight:
    """Returns the sight of a figure that must not exceed `limit`; it is well again below `margin` of that."""
    return Sight(value, limit, value > limit, value <= margin * limit, severity)


def below(value: float, limit: float, margin: float = 1.25, severity: Severity = "warning") -> Sight:
    """Returns the sight of a figure that must not fall below `limit`; it is well again above `margin` times that."""
    return Sight(value, limit, value < limit, value >= margin * limit, severity)


class Detector:
    """Is the base of all detectors, built from the recipe. Its name is its key in events and recipes."""

    name: ClassVar[str]
    sees: ClassVar[Literal["rows", "windows"]] = "windows"
    """Whether it looks at every training row, or at windows with enough assignments."""
    windows: ClassVar[int] = 3
    """Windows in a row, and steps, in which a place must be ill before there is an alarm."""
    steps: ClassVar[int] = 10
    early: ClassVar[tuple[Severity, ...]] = ()
    """What is no part of a healthy run's first steps either, and is judged during warm-up."""

    omits_well: ClassVar[bool] = False
    """Whether `look` leaves out places that are well."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.expected = recipe.moe.router.expectations()

    @property
    def applies(self) -> bool:
        """Returns whether the recipe can fall ill in this way at all."""
        return True

    def look(self, window: Window) -> Mapping[Place, Sight]:
        """Returns what is seen of each place; those that are missing were not measured, but see `omits_well`."""
        raise NotImplementedError

    @staticmethod
    def describe(case: Case) -> str:
        """Returns what is seen, as the rest of a sentence that begins with the place."""
        raise NotImplementedError

    @staticmethod
    def causes(case: Case) -> Iterable[str]:
        """Returns what in the recipe or in the rows may have led there, the likeliest first."""
        return ()

    @staticmethod
    def advice(case: Case) -> Iterable[str]:
        """Returns what to change, in terms of the recipe."""
        return ()

    def needs(self) -> Iterable[str]:
        """Returns figures of `moe` of which it needs at least one."""
        return ()

    def clear(self) -> None:
        """Forgets what it has seen: the recipe has tokens routed in another way from here on."""

    def state_dict(self) -> dict[str, Any]:
        """Returns what must be known after a resume, JSON-ready."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from where `state` was taken."""


class Settled:
    """Remembers what a figure of each layer was when it had settled: the median of the first windows after warm-up."""

    WINDOWS = 5

    def __init__(self) -> None:
        self._values: dict[int, list[float]] = {}

    def add(self, layer: int, value: float) -> float | None:
        """Takes a value in; returns the settled one, None until it is known."""
        values = self._values.setdefault(layer, [])
        if len(values) < self.WINDOWS:
            values.append(value)
            return None
        return median(values)

    def clear(self) -> None:
        """Begins anew."""
        self._values.clear()

    def state(self) -> list[tuple[int, Sequence[float]]]:
        """Returns the values of each layer, JSON-ready."""
        return sorted(self._values.items())

    def load(self, state: Iterable[Sequence[Any]]) -> None:
        """Continues from where `state` was taken."""
        self._values = {layer: list(values) for layer, values in state}


class SettlingDetector(Detector):
    """Is the base of detectors that compare one figure of each layer with what it was when it had settled."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self._settled = Settled()

    def clear(self) -> None:
        self._settled.clear()

    def state_dict(self) -> dict[str, Any]:
        return {"settled": self._settled.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._settled.load(state["settled"])
