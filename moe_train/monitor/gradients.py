"""Measures how much gradient reaches each router and each expert, before clipping, on any layout and engine.

L MoE layers, E experts of the layer that has most.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from moe_train.checkpoint.layout import Shard
from moe_train.moe.layers.layer import moe_layers_of
from moe_train.optim.norm import squared_norms
from moe_train.parallel.axis import Axis


class GradientNorms:
    """Knows which parameters are a router's, and which the experts'."""

    def __init__(self, model: nn.Module, num_experts: Sequence[int]) -> None:
        """`num_experts` are those of each MoE layer."""
        self._num_experts = tuple(num_experts)
        self._layer_of: dict[str, int] = {}
        self._has_router = [False] * len(num_experts)
        for layer, (name, module) in enumerate(moe_layers_of(model)):
            routers = [f"{name}.router.{each}" for each, _ in module.router.named_parameters()]
            experts = [f"{name}.experts.{each}" for each, _ in module.experts.named_parameters()]
            self._layer_of |= dict.fromkeys((*routers, *experts), layer)
            self._has_router[layer] = bool(routers)

    def measure(
        self, gradients: Iterable[tuple[str, Shard]], of_experts: bool, everyone: Axis, device: torch.device
    ) -> dict[str, Any]:
        """Returns the norms by their key in a row, from the boxes of the gradients that this rank owns. Collective.

        `of_experts`: those of the experts too, for which all their gradients are read. A router without weights has no
        norm: NaN.
        """
        if not self._num_experts:
            return {}
        squares: Float64[Tensor, "L E_and_router"] = torch.zeros(
            len(self._num_experts), max(self._num_experts) + 1, dtype=torch.float64, device=device
        )
        for name, box in gradients:
            layer = self._layer_of.get(name)
            if layer is None:
                continue
            if not box.is_expert:
                squares[layer, -1] += squared_norms(box.data.unsqueeze(0))[0]
            elif of_experts:
                first = box.offsets[0]
                squares[layer, first : first + len(box.data)] += squared_norms(box.data)
        norms = everyone.sum(squares).sqrt().tolist()
        of_routers = [
            row[-1] if has_router else math.nan
            for row, has_router in zip(norms, self._has_router, strict=True)
        ]
        by_expert = [row[:experts] for row, experts in zip(norms, self._num_experts, strict=True)]
        found: dict[str, Any] = {"router_gradient_norm": of_routers}
        return found | {"expert_gradient_norm": by_expert} if of_experts else found
