"""Exchanges rows across hosts: a row is sent once to each host that has experts for it, then within that host.

    dispatch   x -> peers on other hosts (all-to-all) -> ranks of this host (exchange)
    combine    ranks of this host (exchange) -> one sum per arrived row -> back (all-to-all) -> sum over hosts

Read relay.py for what leaves a rank, hosts.py for its peers, exchange.py for the step within a host. Gradients are
those of these steps. T tokens of this rank, K choices, D width, M rows that its peers sent, R rows received.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from moe_kernels import exchange as one_host
from moe_kernels.agreement import gather, refuse
from moe_kernels.all_to_all import AllToAll, all_to_all
from moe_kernels.errors import KernelError
from moe_kernels.exchange import Exchange
from moe_kernels.hosts import Hosts
from moe_kernels.relay import Relay


@dataclass(frozen=True)
class Crossing:
    """Records how the rows of one dispatch reached their hosts."""

    relay: Relay
    send: list[int]
    """Number of rows to each host, this one included."""
    receive: list[int]
    """Number of rows from each host."""


@dataclass(frozen=True)
class Dispatched:
    """Holds the rows for this rank's experts, and what combine needs."""

    rows: Tensor
    """[R, D], in order of local expert, then the rank of this host that received them, then source host."""
    counts: list[int]
    """Number of rows of each local expert."""
    overflow: int
    """Number of edges of all ranks that exceeded a capacity, the same on every rank."""
    here: one_host.Dispatched
    crossing: Crossing | None
    """None on a single host."""


class Hierarchical:
    """Represents one rank's end of the exchange. On a single host it is the plain exchange, and nothing is sent."""

    def __init__(self, exchange: Exchange, across: dist.ProcessGroup | None, hosts: Hosts, num_experts: int):
        self.exchange, self.across, self.hosts, self.num_experts = exchange, across, hosts, num_experts
        self.experts_per_host = num_experts // hosts.num_hosts

    @classmethod
    def join(
        cls,
        group: dist.ProcessGroup | None,
        num_experts: int,
        timeout_s: float,
        ranks_per_host: int | None = None,
    ) -> "Hierarchical":
        """Connects with the other ranks of `group` (None: this process alone). Collective.

        `ranks_per_host`: None detects hosts by boot id and name; a number is not checked, and may be smaller than the
        real one. A rank that waits longer than `timeout_s` for another gives up. Raises KernelError, on all ranks: no
        library, a number of experts that the ranks do not divide, hosts with different numbers of ranks, or ranks of a
        host that are not consecutive.
        """
        num_ranks = dist.get_world_size(group) if group is not None else 1
        if num_experts % num_ranks:
            raise KernelError(
                f"{num_experts} experts cannot be distributed over {num_ranks} ranks; the number of ranks must "
                "divide the number of experts"
            )
        hosts = Hosts.of(group, ranks_per_host)
        inside, across = hosts.inside(group, timeout_s), hosts.across(group, timeout_s)
        exchange, problem = None, None
        try:
            exchange = Exchange.join(inside, num_experts // hosts.num_hosts, timeout_s)
        except KernelError as error:
            problem = f"in the exchange of its host, {error}" if hosts.num_hosts > 1 else str(error)
        if hosts.num_hosts > 1:
            refuse(gather(group, problem))
        elif problem is not None:
            raise KernelError(problem)
        assert exchange is not None
        return cls(exchange, across, hosts, num_experts)

    def dispatch(self, x: Tensor, expert_ids: Tensor, capacity: int | None = None) -> Dispatched:
        """Sends the rows of `x` [T, D], fp32 or bf16, to their experts. Collective.

        `expert_ids` [T, K] int32: -1 is no edge. `capacity` is the most rows that this rank accepts; edges beyond it
        are dropped and counted. Either all ranks pass one or none does. Raises PeerTimeoutError, KernelError.
        """
        if self.across is None:
            here = self.exchange.dispatch(x, expert_ids, capacity)
            return Dispatched(here.rows, here.counts, here.overflow, here, None)
        crossing = self._cross(x, expert_ids)
        send, receive = crossing.send, crossing.receive
        arrived = AllToAll.apply(crossing.relay.gather(x), send, receive, self.across)
        arrived_ids = all_to_all(crossing.relay.expert_ids, send, receive, self.across)
        here = self.exchange.dispatch(arrived, arrived_ids, capacity)
        overflow = torch.tensor([here.overflow])
        if capacity is not None:
            dist.all_reduce(overflow, group=self.across)
        return Dispatched(here.rows, here.counts, int(overflow), here, crossing)

    def combine(self, rows: Tensor, weights: Tensor, dispatched: Dispatched) -> Tensor:
        """Returns y [T, D] from the experts' results `rows` [R, D], ordered as `dispatched.rows`. Collective.

        `weights` are [T, K] fp32. A token's results are summed on each host in order of choice, then over hosts in
        order of host. `Exchange.combine` has the rules for `rows`. Raises PeerTimeoutError, KernelError.
        """
        crossing = dispatched.crossing
        if crossing is None:
            return self.exchange.combine(rows, weights, dispatched.here)
        relay, send, receive = crossing.relay, crossing.send, crossing.receive
        if weights.shape != (relay.starts.shape[0], relay.expert_ids.shape[1]):
            raise KernelError(
                f"weights {list(weights.shape)} do not match what was dispatched: {relay.starts.shape[0]} tokens with "
                f"{relay.expert_ids.shape[1]} choices"
            )
        arrived = AllToAll.apply(relay.gather(weights), send, receive, self.across)
        partial = self.exchange.combine(rows, arrived, dispatched.here)
        return relay.sum(AllToAll.apply(partial, receive, send, self.across))

    def empty_like(self, rows: Tensor) -> Tensor:
        """Returns memory for rows of this shape and type that combine need not copy."""
        return self.exchange.empty_like(rows)

    def _cross(self, x: Tensor, expert_ids: Tensor) -> Crossing:
        """Plans what to send, and learns what arrives: the only wait for the host in a dispatch across hosts."""
        self.exchange.check_inputs(x, expert_ids)
        if x.shape[0] != expert_ids.shape[0]:
            raise KernelError(f"{x.shape[0]} rows but expert ids of {expert_ids.shape[0]} tokens")
        if expert_ids.numel() and (highest := int(expert_ids.max())) >= self.num_experts:
            raise KernelError(f"expert id {highest}: there are {self.num_experts} experts, counted from 0")
        relay = Relay.of(expert_ids, self.hosts.num_hosts, self.experts_per_host)
        one_each = [1] * self.hosts.num_hosts
        receive = all_to_all(relay.counts, one_each, one_each, self.across)
        return Crossing(relay, relay.counts.tolist(), receive.tolist())
