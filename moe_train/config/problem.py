"""Defines a problem of a recipe: one broken rule, worded as an error."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """Holds a key, its value, the rule it breaks, and the way out."""

    key: str
    value: object
    rule: str
    way_out: str

    def __str__(self) -> str:
        value = "null" if self.value is None else self.value
        return f"{self.key}={value}: {self.rule}; {self.way_out}."
