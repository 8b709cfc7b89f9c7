"""What the dataclasses of all kinds share, without torch; `registry.py` says which code each of them builds.

To add a kind: a dataclass in the file of its place beside this one (with `check`, if it has rules of its own), a
line in `registry.py`, one file with the implementation, one recipe.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moe_train.config.problem import Problem

if TYPE_CHECKING:
    from moe_train.config.schema import Recipe


@dataclass
class KindConfig:
    """What all kinds share: a name, and rules that need the whole recipe to be judged."""

    kind: str = ""

    def check(self, recipe: "Recipe") -> Iterator[Problem]:
        """Yield what makes this choice unusable in `recipe`."""
        return iter(())
