"""Applies data parallelism by FSDP2: experts are sharded over their replicas, all else over the data axis.

With `parallel.shard` in groups of neighbours, over which gradients are summed too.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import Shard

from moe_train.config.kinds.engine import NativeEngineConfig
from moe_train.model.model import Model
from moe_train.model.stack import Block
from moe_train.moe.experts import Experts
from moe_train.moe.layers.layer import MoELayer, moe_layers_of
from moe_train.parallel.mesh import Mesh


def apply_data(model: Model, mesh: Mesh, engine: NativeEngineConfig) -> None:
    """Shards the parameters. An axis of one rank is never wrapped: FSDP2 on one rank costs 15% of a step.

    Experts are sharded along their width (dim 1), so that every rank of a replica axis holds a part of every one of
    its experts whatever their number. Experts that have no replica stay outside of FSDP2, which lets their
    gradients live in persistent buffers (`moe/experts.py`), unless they are offloaded, which FSDP2 does.
    """
    layers, offload = moe_layers_of(model), _offload(mesh, engine)
    if shards_experts(mesh, engine):
        for _, layer in layers:
            fully_shard(
                layer.experts,
                mesh=mesh.expert_sharding.devices,
                reshard_after_forward=engine.reshard_after_forward,
                shard_placement_fn=lambda _: Shard(1),
                # Merged experts are sums of weights in fp32.
                mp_policy=_precision(engine, reads_bf16=isinstance(layer.experts, Experts)),
                offload_policy=offload,
            )
            if isinstance(layer.experts, Experts):
                register_fsdp_forward_method(layer.experts, "in_two")
    if mesh.data.size == 1:
        return
    owned_elsewhere: set[nn.Parameter] = (
        set()
        if shards_experts(mesh, engine)
        else {parameter for _, layer in layers for parameter in layer.experts.parameters()}
    )
    shard = partial(fully_shard, mesh=mesh.sharding.devices, offload_policy=offload)
    for block in model.blocks:
        for part in _read_in_bf16(block) if engine.gather_dtype else ():
            shard(
                part,
                reshard_after_forward=engine.reshard_after_forward,
                mp_policy=_precision(engine, reads_bf16=True),
            )
        shard(
            block,
            reshard_after_forward=engine.reshard_after_forward,
            mp_policy=_precision(engine),
            ignored_params=owned_elsewhere,
        )
    shard(model, reshard_after_forward=False, mp_policy=_precision(engine), ignored_params=owned_elsewhere)
    for method in model.entry_points:
        register_fsdp_forward_method(model, method)


def shards_experts(mesh: Mesh, engine: NativeEngineConfig) -> bool:
    """Returns whether FSDP2 holds the experts, and with them their gradients."""
    return mesh.replica.size > 1 or (engine.offload and mesh.data.size > 1)


def _read_in_bf16(block: Block) -> Iterator[nn.Module]:
    """Yields what reads its weights in bf16 alone: norms and routers read theirs in fp32."""
    parts = (block.attention, block.cross_attention, block.feedforward, block.shared_experts)
    yield from (part for part in parts if part is not None and not isinstance(part, MoELayer))


def _precision(engine: NativeEngineConfig, *, reads_bf16: bool = False) -> MixedPrecisionPolicy:
    """Returns in which precision weights are gathered and gradients summed; autocast has that of inputs."""
    gathers_bf16 = reads_bf16 and engine.gather_dtype == "bf16"
    reduced = torch.bfloat16 if engine.reduce_dtype == "bf16" else torch.float32 if gathers_bf16 else None
    return MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if gathers_bf16 else None, reduce_dtype=reduced, cast_forward_inputs=False
    )


def _offload(mesh: Mesh, engine: NativeEngineConfig) -> OffloadPolicy:
    return (
        CPUOffloadPolicy(pin_memory=mesh.world.device.type == "cuda") if engine.offload else OffloadPolicy()
    )
