"""Describes how a weight begins. The module that owns a weight says so; `model/init.py` draws the values.

Plain data below all modules, so that a router and an attention layer say it in the same words.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class Normal:
    """Draws from a normal with std = sqrt(scale / fan_in), truncated at 2 std   # Switch (2101.03961) sec. 2.4"""

    fan_in: int
    """Inputs of one output."""
    scale: float | None = None
    """None: model.init_scale."""
    is_stacked: bool = False
    """The matrices of several experts, each drawn by itself."""


@dataclass(frozen=True)
class Orthogonal:
    """Draws orthonormal rows or columns, whichever are fewer, times `gain`."""

    gain: float


@dataclass(frozen=True)
class Constant:
    """Sets the same value everywhere."""

    value: float


Initial = Normal | Orthogonal | Constant


@runtime_checkable
class OwnsWeights(Protocol):
    """Is a module with parameters of its own, beside those of its submodules."""

    def initial(self, name: str) -> Initial:
        """Returns how the parameter called `name` in this module begins."""
        ...
