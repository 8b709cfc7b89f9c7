"""Says what a healthy router looks like in the rows of a run, so that what its kind makes normal raises no alarm."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Expectations:
    """Describes the rows of a healthy run with this router."""

    uses_all_experts: bool = True
    """Over some 100 assignments an expert, none is left out; False: the loads say nothing about the router's health."""
    learns: bool = True
    """The router has weights that the task's gradient reaches."""
    drops_by_design: bool = False
    """Tokens are left without an expert on purpose: a drop rate says nothing."""
    changes: tuple[int, ...] = ()
    """Updates after which the recipe has tokens routed in another way, so that the figures settle anew."""
    begins: int = 0
    """Updates before which nothing is to be expected."""
