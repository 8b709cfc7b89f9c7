"""Defines dispatchers, which bring each edge's row to the worker of its expert, and the results back.

T tokens on this rank, D model width, R rows this rank's experts receive.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from moe_train.moe.routing import Routing


@dataclass(frozen=True)
class Dispatched:
    """Holds the rows for this rank's experts, and what `combine` needs to send their results back."""

    rows: Float[Tensor, "R D"]
    """Ordered by local expert; within one, by source rank (`hierarchical`: by its number on its host, then by host)
    and then by token."""
    counts: list[int]
    """Rows of each local expert."""
    plan: Any
    """The dispatcher's own business."""
    empty_like: Callable[[Tensor], Tensor] = torch.empty_like
    """Makes memory for rows: from here `combine`, and the backward pass of `dispatch`, take them without a copy."""


@runtime_checkable
class Dispatcher(Protocol):
    """Dispatches rows; built as `Dispatcher(config, num_experts=, group=, timeout_s=)`, shared by the group's layers.

    `group` is the expert-parallel process group or None; `timeout_s`, how long a worker waits for another.
    """

    def dispatch(self, x: Float[Tensor, "T D"], routing: Routing) -> Dispatched:
        """Sends each edge's row to its expert. Collective over the expert group."""
        ...

    def combine(self, rows: Float[Tensor, "R D"], dispatched: Dispatched) -> Float[Tensor, "T D"]:
        """Brings the experts' rows back, weights them and sums them per token. Collective over the expert group."""
        ...
