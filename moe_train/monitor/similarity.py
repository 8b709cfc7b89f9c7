"""Finds the two most similar experts of each layer by the cosine of their weights, on any layout and engine.

A cosine near 1 is cheap evidence of a tie, a copy or a restored checkpoint with an expert twice. Experts that compute
the same with their hidden units in another order are not seen: for them the outputs would have to be compared.
L MoE layers, E experts, A x B the shape of an expert's matrix.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from moe_train.checkpoint.layout import Shard
from moe_train.moe.layers.layer import moe_layers_of
from moe_train.parallel.axis import Axis

AT_ONCE = 2**22
"""Elements of all experts that are brought together at a time."""


class Similarity:
    """Knows which parameters are the experts' of each layer."""

    def __init__(self, model: nn.Module) -> None:
        self._layers = [
            [f"{name}.experts.{each}" for each, _ in module.experts.named_parameters()]
            for name, module in moe_layers_of(model)
        ]

    @torch.no_grad()
    def measure(self, shards: Mapping[str, Shard], everyone: Axis) -> dict[str, Any]:
        """Returns the largest cosine [L], and the two experts [L][2]. Collective.

        `shards` are this rank's parts of the parameters. A layer with one expert has no pair: NaN, and an empty list.
        """
        cosines, pairs = [], []
        for names in self._layers:
            products = torch.stack([_products(shards[name], everyone) for name in names]).sum(0)
            norms = products.diagonal().sqrt()
            cosine = products / (norms.unsqueeze(1) * norms).clamp(min=torch.finfo(torch.float64).tiny)
            cosine.fill_diagonal_(-torch.inf)
            place = int(cosine.argmax())
            first, second = divmod(place, len(cosine))
            has_pair = len(cosine) > 1
            cosines.append(float(cosine[first, second]) if has_pair else float("nan"))
            pairs.append(sorted((first, second)) if has_pair else [])
        return {"expert_similarity": cosines, "similar_experts": pairs} if self._layers else {}


def _products(shard: Shard, everyone: Axis) -> Float64[Tensor, "E E"]:
    """Returns the inner products of all experts' matrices, a run of rows at a time, each rank a part of the runs."""
    experts, rows, width = shard.global_shape
    step = max(1, AT_ONCE // (experts * width))
    products = torch.zeros(experts, experts, dtype=torch.float64, device=shard.data.device)
    for place, first in enumerate(range(0, rows, step)):
        run = everyone.sum(_own_part(shard, first, min(first + step, rows)))
        if place % everyone.size == everyone.rank:
            flat = run.flatten(1)
            products += (flat @ flat.t()).double()
    return everyone.sum(products)


def _own_part(shard: Shard, first: int, end: int) -> Float[Tensor, "E rows B"]:
    """Returns rows `first` to `end` - 1 of all experts' matrices, 0 where this rank does not own them."""
    experts, _, width = shard.global_shape
    run = torch.zeros(experts, end - first, width, device=shard.data.device)
    at_expert, at_row, at_column = shard.offsets
    size, own_rows, own_width = shard.data.shape
    low, high = max(first, at_row), min(end, at_row + own_rows)
    if shard.is_owner and low < high:
        part = shard.data[:, low - at_row : high - at_row].detach().float()
        run[at_expert : at_expert + size, low - first : high - first, at_column : at_column + own_width] = (
            part
        )
    return run
