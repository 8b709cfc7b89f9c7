"""Defines the base of all kinds' dataclasses, without torch; `registry.py` maps each to its code.

To add a kind: a dataclass in the file of its place beside this one (with `check`, if it has rules of its own), a
line in `registry.py`, a file with the implementation, and a recipe.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from moe_train.config.kinds.facts import Facts
from moe_train.config.problem import Problem


@dataclass
class KindConfig:
    """Is the base of all kinds: it has a name, and rules that may need the whole recipe."""

    kind: str = ""

    def check(self, recipe: Facts) -> Iterator[Problem]:
        """Yields the problems of this choice in `recipe`."""
        return iter(())
