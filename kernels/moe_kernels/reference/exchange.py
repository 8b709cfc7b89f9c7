"""Computes what an exchange must do, with the inputs of all ranks in one process and in plain torch.

Differentiable by autograd. Lists have an entry for each rank: T tokens of it (every rank has its own number), K
choices, D width, L experts of it, R rows received.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Arrived:
    """Holds what one rank receives."""

    rows: Tensor
    counts: list[int]
    edges: list[tuple[int, int, int]]
    """Source rank, token and choice of each row."""


def dispatch(
    xs: list[Tensor], expert_ids: list[Tensor], num_experts: int, capacities: list[int | None]
) -> tuple[list[Arrived], int]:
    """Returns what each rank receives, and the number of edges of all ranks beyond a capacity.

    Rows are in order of expert, source rank, token and choice; each rank takes the first `capacities[rank]`.
    """
    num_local = num_experts // len(xs)
    arrived, overflow = [], 0
    for rank, capacity in enumerate(capacities):
        edges = [
            (expert, source, token, choice)
            for expert in range(rank * num_local, (rank + 1) * num_local)
            for source, ids in enumerate(expert_ids)
            for token, choice in (ids == expert).nonzero().tolist()
        ]
        kept = edges if capacity is None else edges[:capacity]
        overflow += len(edges) - len(kept)
        rows = [xs[source][token] for _, source, token, _ in kept]
        counts = torch.tensor([expert - rank * num_local for expert, *_ in kept], dtype=torch.long).bincount(
            minlength=num_local
        )
        empty = xs[rank].new_empty(0, xs[rank].shape[1])
        arrived.append(
            Arrived(
                torch.stack(rows) if rows else empty,
                counts.tolist(),
                [(source, token, choice) for _, source, token, choice in kept],
            )
        )
    return arrived, overflow


def combine(rows: list[Tensor], weights: list[Tensor], arrived: list[Arrived]) -> list[Tensor]:
    """Returns y[t] of each rank: the sum over its choices of weight * row, first choice first; 0 without any.

    Summed in float32 (float64 rows: in float64) and rounded once.
    """
    found = {
        edge: rows[rank][place]
        for rank, received in enumerate(arrived)
        for place, edge in enumerate(received.edges)
    }
    wide = torch.float64 if rows[0].dtype == torch.float64 else torch.float32
    results = []
    for source, weight in enumerate(weights):
        y = []
        for token in range(weight.shape[0]):
            total = torch.zeros(rows[source].shape[1], dtype=wide)
            for choice in range(weight.shape[1]):
                row = found.get((source, token, choice))
                if row is not None:
                    total = total + weight[token, choice].to(wide) * row.to(wide)
            y.append(total.to(rows[source].dtype))
        results.append(torch.stack(y) if y else rows[source].new_empty(0, rows[source].shape[1]))
    return results
