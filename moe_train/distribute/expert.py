"""Applies expert parallelism: each rank keeps num_experts / expert experts of a layer, and rows travel to them."""

from functools import cache, partial

import torch
from torch import nn

from moe_train.config.registry import build
from moe_train.model.model import Model
from moe_train.moe.dispatch.dispatcher import Dispatcher
from moe_train.moe.layers.layer import moe_layers_of
from moe_train.parallel.mesh import Mesh


def apply_expert(model: Model, mesh: Mesh) -> None:
    """Cuts the experts of a model on the meta device down to this rank's share, and routes rows over the group.

    Collective: one dispatcher serves all layers with the same number of experts.

    The loss of a rank is a mean over its own tokens, and the run's loss is the mean over all ranks. What arrives at
    an expert through the exchange is the *sum* over the ranks of its group, so weight gradients are divided by the
    expert degree; the mean over replicas is left to data parallelism.
    """
    group = mesh.expert.group
    layers = [layer for _, layer in moe_layers_of(model)]
    if group is None or not layers:
        return
    dispatch, timeout_s = layers[0].spec.dispatch, mesh.world.timeout_s

    @cache
    def dispatcher(num_experts: int) -> Dispatcher:
        return build("moe.dispatch", dispatch, num_experts=num_experts, group=group, timeout_s=timeout_s)

    for layer in layers:
        for name, parameter in list(layer.experts.named_parameters()):
            local = parameter.shape[0] // mesh.expert.size
            with torch.device("meta"):
                setattr(layer.experts, name, nn.Parameter(torch.empty(local, *parameter.shape[1:])))
        layer.experts.gradient_scale *= mesh.plan.expert_gradient_factor
        layer.connect(group, partial(dispatcher, layer.spec.num_experts))
