"""Makes exchanges in the background a part of autograd's graph, in an order that is the same on all ranks.

Ranks that start collectives in different orders wait for each other for ever (NVIDIA/Megatron-LM#1810). Autograd
promises no order of nodes that do not depend on each other, so the nodes here do: each takes all tensors that are under
way, and hands them on. So the graph is a chain, and the backward pass is its moves from last to first, each reversed.
A part is a tensor of any shape, empty if it is under way.
"""

from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from moe_kernels.all_to_all import Trip


class Move(NamedTuple):
    """Describes one event: a trip starts, or what it brings arrives."""

    place: int
    """Of the part among the tensors."""
    trip: Trip
    is_start: bool


def start(place: int, trip: Trip) -> Move:
    """Returns the start of a trip."""
    return Move(place, trip, is_start=True)


def arrive(place: int, trip: Trip) -> Move:
    """Returns the arrival of what a trip brings."""
    return Move(place, trip, is_start=False)


class Turn(Function):
    """Makes moves in their order; what they do not touch passes, and only waits for its turn in the backward pass.

    A part that is under way is an empty tensor. The gradient of an arrival is a start of the way back, and that of a
    start is the arrival there.
    """

    @staticmethod
    def forward(
        ctx: Any, moves: tuple[Move, ...], *parts: Float[Tensor, "..."]
    ) -> tuple[Float[Tensor, "..."], ...]:
        ctx.moves, moved = moves, list(parts)
        for place, trip, is_start in moves:
            if is_start:
                trip.start(moved[place])
                moved[place] = moved[place].new_empty(0)
            else:
                moved[place] = trip.arrive()
        return tuple(moved)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Float[Tensor, "..."]) -> tuple[Tensor | None, ...]:
        moved = list(grads)
        for place, trip, is_start in reversed(ctx.moves):
            if is_start:
                moved[place] = trip.arrive()
            else:
                trip.start_back(moved[place])
                moved[place] = moved[place].new_empty(0)
        return None, *moved
