"""Makes losses of a part of the batch losses of the global batch, whatever microbatches and ranks it comes in.

A share is one microbatch of one rank. Its layers return losses of the share's own tokens, and the sums that these are
made of (`SetLoss`). The sums of all shares are the batch's. In the loss of a share the batch's sums take the place of
its own, and the gradient passes to its own, times the number of shares:

    sums = batch + shares * (own - own without gradient)

The mean over shares, which an update takes, then has the value and the gradient of the loss of the whole batch: also
for a loss that is not linear in its sums, such as CV^2.
P passes over the batch, N sums of all layers.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from moe_train.parallel.axis import Axis
from moe_train.results import MoEStats


def batch_sums(data: Axis, stats: Sequence[Sequence[MoEStats]], num_passes: int) -> Float64[Tensor, "P N"]:
    """Returns the batch's sums in each pass, from the statistics of all passes over a rank's microbatches. Collective.

    They have no gradient. `stats` has the passes over the first microbatch first.
    """
    own = torch.stack([_own_sums(layers) for layers in stats])
    sums = own.unflatten(0, (-1, num_passes)).sum(0)
    return data.sum(sums) if sums.numel() else sums


def of_whole_batch(
    layers: Sequence[MoEStats], sums: Float64[Tensor, " N"], shares: int
) -> tuple[MoEStats, ...]:
    """Returns the statistics of a pass over a share, with the losses of the batch that has these `sums`."""
    whole, start = [], 0
    for layer in layers:
        losses = dict(layer.losses)
        for name, part in layer.batch_losses.items():
            own, end = part.totals, start + part.totals.numel()
            batch = sums[start:end].view_as(own).to(own.dtype)
            losses[name] = part.of_totals(batch + shares * (own - own.detach()))
            start = end
        whole.append(layer._replace(losses=losses, batch_losses={}))
    return tuple(whole)


def watched_over_batch(
    data: Axis, stats: Sequence[Sequence[MoEStats]], num_passes: int
) -> list[tuple[MoEStats, ...]]:
    """Returns an update's statistics with losses of the batch from which nothing was learned, to be reported.

    Collective. `stats` has the passes over the first microbatch first.
    """
    weighed = {
        name: layer.coefficients[name]
        for layers in stats
        for layer in layers
        for name in layer.batch_losses
        if layer.coefficients[name]
    }
    assert not weighed, f"{weighed}: a router that learns from the batch has learns_from_batch"
    sums, shares = batch_sums(data, stats, num_passes), len(stats) // num_passes * data.size
    return [of_whole_batch(layers, sums[index % num_passes], shares) for index, layers in enumerate(stats)]


def _own_sums(layers: Sequence[MoEStats]) -> Float64[Tensor, " N"]:
    """Returns the sums for the losses of the batch in one pass over a share."""
    sums = [part.totals.detach().flatten() for layer in layers for part in layer.batch_losses.values()]
    return torch.cat(sums).double() if sums else torch.zeros(0, dtype=torch.float64)
