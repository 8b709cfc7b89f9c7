"""Counts the experts' loads over a number of last steps that does not depend on `log_every`.

How uneven loads look depends on how many assignments are counted: n of them have a CV of sqrt((E - 1) / n) by chance
alone, and a router that changes from step to step is even only in the long run. So the balance figures cover a span of
steps that follows from the recipe but not from `log_every`: SPAN_STEPS, or more if these have too few assignments. The
span is kept in BUCKETS parts of the same number of steps; the oldest part is dropped at a time.
L MoE layers, E experts of the layer that has most.
"""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Int
from torch import Tensor

from moe_train.config.resolve import spec_of
from moe_train.config.schema import Recipe
from moe_train.monitor.balance import FAIR_SHARE
from moe_train.parallel.axis import Axis
from moe_train.results import LOAD

BUCKETS = 10
SPAN_STEPS = 10
"""Minimum number of steps in a span."""


def bucket_steps(recipe: Recipe) -> int:
    """Returns the number of steps of one part of the span."""
    spec = spec_of(recipe)
    lengths = [stack.length for stack in spec.stacks if stack.moe]
    tokens = recipe.data.global_batch * min(lengths, default=1)
    needed = math.ceil(FAIR_SHARE * max(spec.num_experts, default=1) / tokens)
    return math.ceil(max(needed, SPAN_STEPS) / BUCKETS)


class RecentLoads:
    """Counts the loads of the span on this rank."""

    def __init__(self, num_layers: int, num_experts: int, steps: int, device: torch.device) -> None:
        """Starts with zero loads; `steps` is the number of steps in one part."""
        self._steps = steps
        self._parts: Int[Tensor, "P L E"] = torch.zeros(
            BUCKETS, num_layers, num_experts, dtype=torch.int64, device=device
        )

    def begin(self, step: int) -> None:
        """Makes room for update `step`, counted from 1, by clearing a part that is older than the span."""
        place, in_part = divmod(step - 1, self._steps)
        self._current = self._parts[place % BUCKETS]
        if in_part == 0:
            self._current.zero_()

    def add(self, loads: Int[Tensor, "L E"]) -> None:
        """Counts loads of the current update."""
        self._current += loads

    def total(self) -> Int[Tensor, "L E"]:
        """Returns the loads of the span, on this rank."""
        return self._parts.sum(0)

    def state(self, data: Axis) -> dict[str, list[list[list[int]]]]:
        """Returns the parts over all ranks, by name of the count. Collective."""
        return {LOAD: data.sum(self._parts.double()).long().tolist()}

    def load_state(self, state: Mapping[str, list[list[list[int]]]], data: Axis) -> None:
        """Continues with the parts of `state`, which rank 0 takes; starts afresh if there are none of this shape."""
        self._parts.zero_()
        saved = torch.tensor(state.get(LOAD, []), dtype=torch.int64)
        if data.is_first and saved.numel() == self._parts.numel():
            self._parts.copy_(saved.view(self._parts.shape))
