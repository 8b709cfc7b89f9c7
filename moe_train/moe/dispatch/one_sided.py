"""Implements expert parallelism within a host: every row is written straight into its place at its expert's worker.

The work is done by moe_kernels (kernels/README.md has the protocol); here edges become its tables and back.
T tokens on this rank, K choices, N edges, R rows this rank's experts receive, D model width.
"""

import logging
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from moe_kernels.errors import KernelError
from moe_kernels.exchange import Exchange
from moe_kernels.hierarchical import Hierarchical
from moe_train.config.kinds.dispatch import AllToAllDispatchConfig, DispatchConfig, OneSidedDispatchConfig
from moe_train.moe.dispatch.all_to_all import AllToAllDispatcher
from moe_train.moe.dispatch.dispatcher import Dispatched, Dispatcher
from moe_train.moe.dispatch.fallback import fall_back, is_on_cpu
from moe_train.moe.routing import Routing

log = logging.getLogger(__name__)
ALONE_SLABS = 32
"""For a layer that shares its experts with nobody, and so has an exchange of its own."""


@dataclass(frozen=True)
class Sent:
    """Holds what combine needs: how the rows were sent, and their weights."""

    exchanged: Any
    """The exchange's own business."""
    weights: Float[Tensor, "T K"]


class OneSidedDispatcher:
    """Exchanges rows through memory shared by a host's workers; `Hierarchical` brings them to that host first.

    On CUDA the one host synchronisation of a dispatch is that of `exchange.dispatch`: experts are a loop of products,
    whose sizes must be known. Combine and the backward passes have none.
    """

    def __init__(self, exchange: Exchange | Hierarchical):
        self.exchange = exchange

    def dispatch(self, x: Float[Tensor, "T D"], routing: Routing) -> Dispatched:
        expert_ids, weights = tables(routing)
        exchanged = self.exchange.dispatch(x, expert_ids)
        return Dispatched(
            exchanged.rows, exchanged.counts, Sent(exchanged, weights), self.exchange.empty_like
        )

    def combine(self, rows: Float[Tensor, "R D"], dispatched: Dispatched) -> Float[Tensor, "T D"]:
        sent: Sent = dispatched.plan
        return self.exchange.combine(rows, sent.weights, sent.exchanged)


def tables(routing: Routing) -> tuple[Int[Tensor, "T K"], Float[Tensor, "T K"]]:
    """Returns the edges by token and choice: expert ids (int32, -1 where there is no edge) and weights (0 there)."""
    shape = (routing.num_tokens, routing.num_choices)
    places = routing.token_ids * routing.num_choices + routing.choices
    expert_ids = torch.full((shape[0] * shape[1],), -1, dtype=torch.int32, device=places.device)
    expert_ids.index_copy_(0, places, routing.expert_ids.int())
    weights = routing.weights.new_zeros(shape[0] * shape[1]).scatter(0, places, routing.weights)
    return expert_ids.view(shape), weights.view(shape)


def join(
    config: DispatchConfig, *, num_experts: int, group: dist.ProcessGroup | None, timeout_s: float
) -> Dispatcher:
    """Returns the one-sided dispatcher; where it cannot be had, `all_to_all`, and why. Collective over `group`.

    On CUDA it has run between processes that share one GPU, not between several, so it is taken where `config` asks for
    it by name.
    """
    if group is None:
        return _alone(num_experts, timeout_s)
    place: dict[str, Any] = {}
    if not is_on_cpu(group):
        if not isinstance(config, OneSidedDispatchConfig):
            return fall_back(num_experts, group, timeout_s, "one_sided on CUDA must be asked for by name")
        place = {
            "device": torch.device("cuda", torch.cuda.current_device()),
            "slab_bytes": config.slab_mib << 20,
            "num_slabs": config.num_slabs,
        }
    try:
        exchange = Exchange.join(group, num_experts, timeout_s, **place)
    except KernelError as problem:
        return fall_back(num_experts, group, timeout_s, str(problem))
    log.info("Experts are exchanged by one_sided, in memory that %d workers share.", exchange.num_ranks)
    return OneSidedDispatcher(exchange)


def _alone(num_experts: int, timeout_s: float) -> Dispatcher:
    """Makes the exchange for a worker that holds all experts, on an unknown device: on the CPU if there is no other."""
    if torch.cuda.is_available():
        return AllToAllDispatcher(AllToAllDispatchConfig(), num_experts=num_experts, group=None)
    try:
        return OneSidedDispatcher(Exchange.join(None, num_experts, timeout_s, num_slabs=ALONE_SLABS))
    except KernelError as problem:
        return fall_back(num_experts, None, timeout_s, str(problem))
