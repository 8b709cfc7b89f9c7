"""Applies data parallelism by FSDP2: experts are sharded over their replicas, all else over the data axis."""

from torch import nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import Shard

from moe_train.config.kinds.engine import NativeEngineConfig
from moe_train.model.model import Model
from moe_train.moe.layers.layer import moe_layers_of
from moe_train.parallel.mesh import Mesh


def apply_data(model: Model, mesh: Mesh, engine: NativeEngineConfig) -> None:
    """Shards the parameters. An axis of one rank is never wrapped: FSDP2 on one rank costs 15% of a step.

    Experts are sharded along their width (dim 1), so that every rank of a replica axis holds a part of every one of
    its experts whatever their number. Experts that have no replica stay outside of FSDP2, which lets their
    gradients live in persistent buffers (`moe/experts.py`).
    """
    layers = moe_layers_of(model)
    if mesh.replica.size > 1:
        for _, layer in layers:
            fully_shard(
                layer.experts,
                mesh=mesh.replica.devices,
                reshard_after_forward=engine.reshard_after_forward,
                shard_placement_fn=lambda _: Shard(1),
            )
    if mesh.data.size == 1:
        return
    owned_elsewhere: set[nn.Parameter] = (
        {parameter for _, layer in layers for parameter in layer.experts.parameters()}
        if mesh.replica.size == 1
        else set()
    )
    for block in model.blocks:
        fully_shard(
            block,
            mesh=mesh.data.devices,
            reshard_after_forward=engine.reshard_after_forward,
            ignored_params=owned_elsewhere,
        )
    fully_shard(model, mesh=mesh.data.devices, reshard_after_forward=False, ignored_params=owned_elsewhere)
    for method in model.entry_points:
        register_fsdp_forward_method(model, method)
