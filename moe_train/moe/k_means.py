"""Implements k-means with its seeding, reproducible exactly: float64, draws of a given generator, bounded steps.

Lloyd's iterations from centres that are drawn far apart (k-means++, Arthur and Vassilvitskii, 2007).
P points, N numbers of one, K clusters.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

MAX_ITERATIONS = 30
ROWS_AT_A_TIME = 8192
"""Points whose distances to all centres are held at once."""


def k_means(points: Float[Tensor, "P N"], clusters: int, generator: torch.Generator) -> Int[Tensor, " P"]:
    """Returns the cluster of every point. None is empty, unless there are fewer points than clusters."""
    centres = _far_apart(points, clusters, generator)
    cluster_ids = torch.full((len(points),), -1)
    for _ in range(MAX_ITERATIONS):
        before = cluster_ids
        cluster_ids = _without_empty(*_nearest(points, centres), clusters)
        if torch.equal(before, cluster_ids):
            break
        sizes = torch.bincount(cluster_ids, minlength=clusters).clamp(min=1)
        centres = torch.zeros_like(centres).index_add(0, cluster_ids, points) / sizes.unsqueeze(1)
    return cluster_ids


def _far_apart(
    points: Float[Tensor, "P N"], clusters: int, generator: torch.Generator
) -> Float[Tensor, "K N"]:
    """Draws points, each in proportion to its squared distance from those before it."""
    distance = points.new_ones(len(points))
    chosen: list[Tensor] = []
    for _ in range(clusters):
        # The little that is added matters only where all points have been chosen: then any will do.
        chosen.append(points[torch.multinomial(distance + 1e-12, 1, generator=generator)])
        from_last = (points - chosen[-1]).square().sum(1)
        distance = from_last if len(chosen) == 1 else torch.minimum(distance, from_last)
    return torch.cat(chosen)


def _nearest(
    points: Float[Tensor, "P N"], centres: Float[Tensor, "K N"]
) -> tuple[Int[Tensor, " P"], Float[Tensor, " P"]]:
    """Returns the nearest centre of every point, and the squared distance, less the point's own square."""
    squares = centres.square().sum(1)
    nearest = [(squares - 2 * rows @ centres.t()).min(1) for rows in points.split(ROWS_AT_A_TIME)]
    return torch.cat([each.indices for each in nearest]), torch.cat([each.values for each in nearest])


def _without_empty(
    cluster_ids: Int[Tensor, " P"], distance: Float[Tensor, " P"], clusters: int
) -> Int[Tensor, " P"]:
    """Returns the same, but each cluster without a point gets one of those that are farthest from their centre."""
    empty = (torch.bincount(cluster_ids, minlength=clusters) == 0).nonzero().flatten()[: len(cluster_ids)]
    return cluster_ids.index_copy(0, distance.topk(len(empty)).indices, empty)
