"""Applies expert parallelism: each rank keeps its part of every layer's experts, and rows travel to them.

A part is num_experts / expert experts, cut to 1 / expert_tensor of their hidden width. Where tensor ranks have the same
tokens, each dispatches a share of them: see moe/dispatch/divided.py.
"""

from functools import cache, partial

import torch
from torch import nn

from moe_train.config.registry import build
from moe_train.model.model import Model
from moe_train.moe.dispatch.dispatcher import Dispatcher
from moe_train.moe.dispatch.divided import DividedDispatcher
from moe_train.moe.experts import HIDDEN_DIM, ExpertWeights
from moe_train.moe.layers.layer import MoELayer, moe_layers_of
from moe_train.parallel.mesh import Mesh


def apply_expert(model: Model, mesh: Mesh, gradient_factor: float | None = None) -> None:
    """Cuts the experts of a model on the meta device down to this rank's part, and routes rows to all parts.

    Collective: one dispatcher serves all layers with the same number of experts.

    The loss of a rank is a mean over its own tokens, and the run's loss is the mean over data ranks. What arrives at
    an expert through the exchange is a *sum* over ranks, so weight gradients get the factor of the plan; the mean over
    replicas is left to data parallelism. `gradient_factor` replaces that factor, for an engine that does otherwise.
    """
    layers = [layer for _, layer in moe_layers_of(model)]
    if not layers or mesh.exchange.size == mesh.tensor.size == 1:
        return
    dispatch, timeout_s = layers[0].spec.dispatch, mesh.world.timeout_s

    @cache
    def shared(num_slices: int) -> Dispatcher:
        group = mesh.exchange.group
        return build("moe.dispatch", dispatch, num_experts=num_slices, group=group, timeout_s=timeout_s)

    def dispatcher(layer: MoELayer) -> Dispatcher:
        num_slices = mesh.expert_tensor.size
        whole = layer.dispatcher if mesh.exchange.size == 1 else shared(layer.spec.num_experts * num_slices)
        if mesh.tensor.size == num_slices == 1:
            return whole
        return DividedDispatcher(
            whole, mesh.tensor, num_slices, num_held=layer.spec.num_experts // mesh.expert.size
        )

    factor = mesh.plan.expert_gradient_factor if gradient_factor is None else gradient_factor
    for layer in layers:
        _cut(layer.experts, mesh)
        layer.experts.gradient_scale *= factor
        layer.connect(mesh, partial(dispatcher, layer))


def _cut(experts: ExpertWeights, mesh: Mesh) -> None:
    """Leaves this rank's slices of this rank's experts."""
    for name, parameter in list(experts.named_parameters()):
        shape = list(parameter.shape)
        for dim, axis in ((0, mesh.expert), (HIDDEN_DIM[name], mesh.expert_tensor)):
            shape[dim] //= axis.size
        with torch.device("meta"):
            setattr(experts, name, nn.Parameter(torch.empty(shape)))
