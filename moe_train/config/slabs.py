"""Checks that `one_sided` has the slabs on a GPU that a step holds at once; on the CPU they are made as needed."""

from collections import Counter
from collections.abc import Iterator

from moe_train.config.kinds.dispatch import OneSidedDispatchConfig
from moe_train.config.kinds.engine import OwnEngineConfig
from moe_train.config.problem import Problem
from moe_train.config.resolve import spec_of
from moe_train.config.schema import Recipe

PASSING = 6
"""Slabs of the layer that is at work, forward or backward."""
OF_A_LAYER = 2
"""Slabs that a layer holds until its backward pass: the rows that it received, and the results of its experts."""


def slab_problems(recipe: Recipe) -> Iterator[Problem]:
    """Yields the problem of too few slabs, where the recipe itself says that they are on GPUs."""
    dispatch = recipe.moe.dispatch
    if not isinstance(dispatch, OneSidedDispatchConfig) or recipe.job.device != "cuda":
        return
    if dispatch.num_slabs < (needed := slabs_at_once(recipe)):
        yield Problem(
            "moe.dispatch.num_slabs",
            dispatch.num_slabs,
            f"must be at least {needed}, which the MoE layers hold at once",
            f"set moe.dispatch.num_slabs={needed}, or engine.recompute=block, with which they need "
            f"{PASSING + OF_A_LAYER}",
        )


def slabs_at_once(recipe: Recipe) -> int:
    """Returns how many slabs the layers of one exchange need at the most: those with the same number of experts."""
    engine = recipe.engine
    if isinstance(engine, OwnEngineConfig) and engine.recompute in ("experts", "block"):
        return PASSING + OF_A_LAYER
    layers = max(Counter(spec_of(recipe).num_experts).values(), default=0)
    return PASSING + OF_A_LAYER * layers * recipe.objective.num_passes
