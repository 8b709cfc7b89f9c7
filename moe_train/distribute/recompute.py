"""Applies recomputation: says which parts of each block run again in the backward pass, for less memory.

After the cut of the experts, since what runs again includes their exchange; before FSDP2, whose hooks on blocks then
stand around all that runs again, so that weights are gathered once for it.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor

from moe_train.model.model import Model
from moe_train.moe.layers.layer import moe_layers_of
from moe_train.moe.recompute import Decision, recomputed
from moe_train.moe.routing import RouteContext

Recompute = Literal["none", "experts", "attention", "block"]


def apply_recompute(model: Model, parts: Recompute) -> None:
    """Has the backward pass run again what lies between dispatch and combination, attention, or whole blocks."""
    if parts == "experts":
        for _, layer in moe_layers_of(model):
            layer.run_experts = recomputed
    elif parts != "none":
        for block in model.blocks:
            if parts == "attention":
                block.run_attention = recomputed
            else:
                block.run = _recomputed_with_decision


def _recomputed_with_decision(
    block: Callable[..., Any], x: Tensor, bias: Tensor | None, context: RouteContext, *others: Tensor | None
) -> Any:
    """Runs a block that runs again with what its router has decided."""
    return recomputed(block, x, bias, replace(context, decision=Decision()), *others)
