"""Applies recomputation: says which parts of each block run again in the backward pass, for less memory.

After the cut of the experts, since what runs again includes their exchange; before FSDP2, whose hooks on blocks then
stand around all that runs again, so that weights are gathered once for it.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from torch import Tensor

from moe_train.model.model import Model
from moe_train.moe.layers.layer import moe_layers_of
from moe_train.moe.recompute import Decision, Run, recomputed, recomputed_to_its_end
from moe_train.moe.routing import RouteContext

Recompute = Literal["none", "experts", "attention", "block"]


def apply_recompute(model: Model, parts: Recompute, *, holds_parts: bool) -> None:
    """Has the backward pass run again what lies between dispatch and combination, attention, or whole blocks.

    `holds_parts` says that FSDP2 will hold parts of blocks, and not just blocks and experts.
    """
    run = recomputed_to_its_end if holds_parts else recomputed
    if parts == "experts":
        for _, layer in moe_layers_of(model):
            layer.run_experts = run
    elif parts != "none":
        for block in model.blocks:
            if parts == "attention":
                block.run_attention = run
            else:
                block.run = partial(_with_decision, run)


def _with_decision(
    run: Run,
    block: Callable[..., Any],
    x: Tensor,
    bias: Tensor | None,
    context: RouteContext,
    *others: Tensor | None,
) -> Any:
    """Runs a block that gets what its router has decided when it runs again."""
    return run(block, x, bias, replace(context, decision=Decision()), *others)
