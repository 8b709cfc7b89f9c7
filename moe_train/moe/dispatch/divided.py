"""Dispatches where tensor ranks divide an MoE layer: each has a share of the tokens, and experts may be cut in slices.

All ranks of a tensor group have the same tokens and make the same routing, of whole groups and within the capacity.
Here each rank takes its share of the tokens, dispatches the edges of these alone, and gathers the outputs. So an edge
travels once, and the gradients of input and router are complete on every rank (parallel/share.py). With sequence
parallelism a rank's own tokens are its share, and outputs stay where they are.

A slice is a part of an expert's hidden width, and for the dispatcher beneath an expert of its own: an edge becomes one
edge to each slice of its expert, with the same weight. The sum over a token's edges then adds up the products with the
slices of `w_out`, and no collective is needed for it.
T tokens, S of them in this rank's share, K choices, N edges, D model width, R rows this rank's experts receive.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from moe_train.moe.dispatch.dispatcher import Dispatched, Dispatcher
from moe_train.moe.routing import Routing
from moe_train.parallel.axis import Axis
from moe_train.parallel.share import bounds, gather, split


@dataclass(frozen=True)
class _Sent:
    """Holds what combine needs."""

    dispatched: Dispatched
    num_tokens: int
    num_given: int
    """Fewer tokens than all: the input was this rank's share alone, and so are the outputs."""


@dataclass(frozen=True)
class DividedDispatcher:
    """Dispatches this rank's share of the tokens to slices of experts by another dispatcher."""

    whole: Dispatcher
    """Knows nothing of shares and slices; it was built for as many experts as there are slices of experts."""
    tensor: Axis
    """The workers that have the same tokens."""
    num_slices: int
    """Of each expert, on as many neighbouring workers."""
    num_held: int
    """Experts of which each worker has a slice."""

    def dispatch(self, x: Float[Tensor, "T D"], routing: Routing) -> Dispatched:
        edges = self.edges_of_share(routing)
        dispatched = self.whole.dispatch(self.rows_of_share(x, routing), edges)
        return replace(dispatched, plan=_Sent(dispatched, routing.num_tokens, len(x)))

    def combine(self, rows: Float[Tensor, "R D"], dispatched: Dispatched) -> Float[Tensor, "T D"]:
        sent: _Sent = dispatched.plan
        return self.as_given(self.whole.combine(rows, sent.dispatched), sent.num_given, sent.num_tokens)

    def edges_of_share(self, routing: Routing) -> Routing:
        """Returns the edges of this rank's share of the tokens to slices; the gradient is collective."""
        return edges_to_slices(share_of_edges(routing, self.tensor), self.num_slices, self.num_held)

    def rows_of_share(self, x: Float[Tensor, "T D"], routing: Routing) -> Float[Tensor, "S D"]:
        """Returns the rows of this rank's share, unless these are all that it has; the gradient is collective then."""
        return x if len(x) < routing.num_tokens else split(x, self.tensor)

    def as_given(self, y: Float[Tensor, "S D"], num_given: int, num_tokens: int) -> Float[Tensor, "T D"]:
        """Returns the outputs of all tokens from those of the shares, unless a share was given. Collective then."""
        return y if num_given < num_tokens else gather(y, self.tensor, num_tokens)


def share_of_edges(routing: Routing, tensor: Axis) -> Routing:
    """Returns the edges of this rank's share of the tokens, which it counts from 0; the gradient is collective.

    Only what dispatchers read is left: priority and losses are those of all tokens.
    """
    if tensor.size == 1:
        return routing
    first, last = bounds(routing.num_tokens, tensor)
    slots = routing.token_ids * routing.num_choices + routing.choices
    weights = split(routing.weight_table(), tensor)
    mine = ((routing.token_ids >= first) & (routing.token_ids < last)).nonzero().squeeze(1)
    return Routing(
        token_ids=routing.token_ids[mine] - first,
        expert_ids=routing.expert_ids[mine],
        choices=routing.choices[mine],
        weights=weights.flatten()[slots[mine] - first * routing.num_choices],
        num_tokens=last - first,
        num_experts=routing.num_experts,
        num_choices=routing.num_choices,
    )


def edges_to_slices(routing: Routing, num_slices: int, num_held: int) -> Routing:
    """Returns an edge to each slice of an edge's expert.

    Worker w * num_slices + s holds slice s of the experts w * num_held ... (w + 1) * num_held - 1, and dispatchers
    count experts, here slices, worker by worker.
    """
    if num_slices == 1:
        return routing
    slices = torch.arange(num_slices, device=routing.expert_ids.device)
    experts = routing.expert_ids.unsqueeze(1)
    workers = experts // num_held * num_slices + slices
    return replace(
        routing,
        token_ids=routing.token_ids.repeat_interleave(num_slices),
        expert_ids=(workers * num_held + experts % num_held).flatten(),
        choices=(routing.choices.unsqueeze(1) * num_slices + slices).flatten(),
        weights=routing.weights.unsqueeze(1).expand(-1, num_slices).flatten(),
        num_experts=routing.num_experts * num_slices,
        num_choices=routing.num_choices * num_slices,
    )
