"""Puts the range of a recipe's field beside the field: `steps: int = at_least(1, 1000)`.

`ranges.py` checks every field of a recipe that has one. Kinds, and packages that add some, may use them too.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, TypeVar, cast

from moe_train.config.problem import Problem

T = TypeVar("T")
KEY = "bound"


@dataclass(frozen=True)
class Bound:
    """Limits a field from below."""

    lowest: int
    is_allowed: bool
    """`lowest` itself is within the range."""
    may_be_null: bool

    def problem(self, key: str, value: Any) -> Problem | None:
        """Returns what is wrong with a value, if anything is."""
        if value is None and self.may_be_null:
            return None
        if value is not None and (value >= self.lowest if self.is_allowed else value > self.lowest):
            return None
        if self.is_allowed:
            return Problem(key, value, f"must be at least {self.lowest}", f"set {key}={self.lowest} or more")
        way_out = f"set {key} to a positive number{' or to null' if self.may_be_null else ''}"
        return Problem(key, value, f"must be above {self.lowest}", way_out)


def at_least(lowest: int, default: T) -> T:
    """Returns a field whose value must be `lowest` or more."""
    return _bounded(default, Bound(lowest, is_allowed=True, may_be_null=False))


def positive(default: T) -> T:
    """Returns a field whose value must be above 0."""
    return _bounded(default, Bound(0, is_allowed=False, may_be_null=False))


def positive_or_null(default: T) -> T:
    """Returns a field whose value must be above 0, or null."""
    return _bounded(default, Bound(0, is_allowed=False, may_be_null=True))


def bounded_fields(section: object, prefix: str = "") -> Iterator[tuple[str, Any, Bound]]:
    """Yields key, value and bound of every field below `section` that has one."""
    for each in fields(section):  # type: ignore[arg-type]
        key, value = f"{prefix}{each.name}", getattr(section, each.name)
        if is_dataclass(value):
            yield from bounded_fields(value, f"{key}.")
        elif KEY in each.metadata:
            yield key, value, each.metadata[KEY]


def _bounded(default: T, bound: Bound) -> T:
    """Returns a dataclass field, which type checkers are to take for its value as they do with `field` itself."""
    return cast(T, field(default=default, metadata={KEY: bound}))
