"""What every dispatcher does: bring each edge's row to the worker of its expert, and bring the results back.

T tokens on this rank, D model width, R rows this rank's experts receive.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from moe_train.moe.routing import Routing


@dataclass(frozen=True)
class Dispatched:
    """Rows for this rank's experts, and what `combine` needs to send their results back."""

    rows: Float[Tensor, "R D"]
    """Ordered by local expert; within one, by source rank and then by token."""
    counts: list[int]
    """Rows of each local expert."""
    plan: Any
    """The dispatcher's own business."""


@runtime_checkable
class Dispatcher(Protocol):
    """Built as `Dispatcher(config, num_experts=, group=)`; `group` is the expert-parallel process group or None."""

    def dispatch(self, x: Float[Tensor, "T D"], routing: Routing) -> Dispatched:
        """Send each edge's row to its expert. Collective over the expert group."""
        ...

    def combine(self, rows: Float[Tensor, "R D"], dispatched: Dispatched) -> Float[Tensor, "T D"]:
        """Bring the experts' rows back, weigh them and sum them per token. Collective over the expert group."""
        ...
