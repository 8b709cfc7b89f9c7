"""Makes an optimizer's groups of parameters as ZeRO needs them: it flattens each group, and cuts the flat tensor.

What DeepSpeed treats differently must be in groups of its own: experts, whose gradients are summed over their replicas;
and what a router may begin anew, because a flat tensor has one count of updates (AdamW's bias correction).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from moe_train.checkpoint.layout import Shard
from moe_train.model.model import Model
from moe_train.moe.layers.layer import moe_layers_of

MakeOptimizer = Callable[[Mapping[str, Shard]], torch.optim.Optimizer]
Templates = list[dict[str, Tensor]]
"""For each group, the state of one of its parameters."""


def grouped_optimizer(
    make: MakeOptimizer, model: Model, shards: Mapping[str, Shard], expert_name: str | None
) -> tuple[torch.optim.Optimizer, Templates]:
    """Returns the optimizer over whole parameters, and what the state of a group will be.

    `expert_name` is DeepSpeed's name of the group of experts; None: nothing is cut by experts. The optimizer is made
    over stand-ins without elements, so that state is allocated once the parameters are cut, and not before.
    """
    stand_ins = {
        name: torch.empty((0,) * shard.data.ndim, device=shard.data.device) for name, shard in shards.items()
    }
    optimizer = make({name: replace(shards[name], data=data) for name, data in stand_ins.items()})
    name_of = {id(data): name for name, data in stand_ins.items()}
    renewed = set(_renewed(model, shards))
    groups: list[dict[str, Any]] = []
    templates: Templates = []
    for group in optimizer.param_groups:
        parts: dict[str, list[Tensor]] = {}
        for stand_in in group["params"]:
            name = name_of[id(stand_in)]
            parts.setdefault(_label(shards[name], name in renewed, expert_name), []).append(stand_in)
        for label, members in parts.items():
            parameters = [shards[name_of[id(member)]].data for member in members]
            groups.append({**group, "params": parameters, "name": label, "moe": label == expert_name})
            templates.append(optimizer.state[members[0]])
    optimizer.state.clear()
    optimizer.param_groups[:] = groups
    return optimizer, templates


def begin_state(optimizer: torch.optim.Optimizer, templates: Templates) -> None:
    """Allocates the state of each group's flat tensor, as before the first update."""
    for group, template in zip(optimizer.param_groups, templates, strict=True):
        (flat,) = group["params"]
        optimizer.state[flat] = {
            key: torch.zeros_like(flat, requires_grad=False) if value.ndim else torch.zeros_like(value)
            for key, value in template.items()
        }


def _label(shard: Shard, is_renewed: bool, expert_name: str | None) -> str:
    if shard.is_expert and expert_name is not None:
        return expert_name
    return "renewed" if is_renewed else "shared"


def _renewed(model: Model, shards: Mapping[str, Shard]) -> Iterator[str]:
    """Yields the parameters of experts and routers."""
    for layer, _ in moe_layers_of(model):
        yield from (name for name in shards if name.startswith((f"{layer}.experts.", f"{layer}.router.")))
