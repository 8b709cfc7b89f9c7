"""Computes what an exchange across hosts must do, with the inputs of all ranks in one process and in plain torch.

Differentiable by autograd. Rank r = h*G + g is number g of host h. Lists have an entry for each rank: T tokens of it,
K choices, D width, R rows received.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from moe_kernels.reference import exchange
from moe_kernels.reference.exchange import Arrived


@dataclass(frozen=True)
class Crossed:
    """Holds what every rank receives, and how it got there."""

    arrived: list[Arrived]
    relayed: list[list[tuple[int, int]]]
    """(source rank, token) of each row that a rank's peers brought to its host."""
    ranks_per_host: int

    @property
    def num_crossing(self) -> list[int]:
        """Returns the number of rows that each rank sent to other hosts."""
        counts = [0] * len(self.relayed)
        for rank, rows in enumerate(self.relayed):
            for source, _ in rows:
                counts[source] += source // self.ranks_per_host != rank // self.ranks_per_host
        return counts


def dispatch(
    xs: list[Tensor],
    expert_ids: list[Tensor],
    num_experts: int,
    ranks_per_host: int,
    capacities: list[int | None],
) -> tuple[Crossed, int]:
    """Returns what each rank receives, and the number of edges of all ranks beyond a capacity.

    A token goes once to each host that has an expert of it, to the rank with its own rank's number there, which passes
    it on: rows are in order of expert, rank that passed them on, source host, token and choice.
    """
    per_host = num_experts // (len(xs) // ranks_per_host)
    relayed: list[list[tuple[int, int]]] = [
        [
            (source, token)
            for source in range(rank % ranks_per_host, len(xs), ranks_per_host)
            for token, row in enumerate((expert_ids[source] // per_host).tolist())
            if rank // ranks_per_host in row
        ]
        for rank in range(len(xs))
    ]
    arrived, overflow = [], 0
    for host, ranks in enumerate(_hosts(len(xs), ranks_per_host)):
        ids = [_select(expert_ids, relayed[rank]) for rank in ranks]
        found, refused = exchange.dispatch(
            [_select(xs, relayed[rank]) for rank in ranks],
            [torch.where(i // per_host == host, i % per_host, -1) for i in ids],
            per_host,
            [capacities[rank] for rank in ranks],
        )
        arrived += found
        overflow += refused
    return Crossed(arrived, relayed, ranks_per_host), overflow


def combine(rows: list[Tensor], weights: list[Tensor], crossed: Crossed) -> list[Tensor]:
    """Returns y[t] of each rank: the sum over hosts, in their order, of each host's result for the token.

    A host's part is rounded to the type of the rows, for it travels; their sum is in float32 (float64 rows: float64).
    """
    wide = torch.float64 if rows[0].dtype == torch.float64 else torch.float32
    totals = [[torch.zeros(rows[0].shape[1], dtype=wide) for _ in weight] for weight in weights]
    for ranks in _hosts(len(rows), crossed.ranks_per_host):
        partials = exchange.combine(
            [rows[rank] for rank in ranks],
            [_select(weights, crossed.relayed[rank]) for rank in ranks],
            [crossed.arrived[rank] for rank in ranks],
        )
        for rank, partial in zip(ranks, partials, strict=True):
            for (source, token), part in zip(crossed.relayed[rank], partial, strict=True):
                totals[source][token] = totals[source][token] + part.to(wide)
    empty = rows[0].new_empty(0, rows[0].shape[1])
    return [torch.stack(total).to(rows[0].dtype) if total else empty for total in totals]


def _hosts(num_ranks: int, ranks_per_host: int) -> list[range]:
    return [range(first, first + ranks_per_host) for first in range(0, num_ranks, ranks_per_host)]


def _select(tensors: list[Tensor], places: list[tuple[int, int]]) -> Tensor:
    """Selects row `token` of `tensors[source]` for each position."""
    found = [tensors[source][token] for source, token in places]
    return torch.stack(found) if found else tensors[0].new_empty(0, tensors[0].shape[1])
