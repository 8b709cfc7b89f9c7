"""Makes this rank's part of a model from a spec: the one place where the order of parallelism is written.

1. The whole model on the meta device: shapes, no storage.
2. Tensor parallelism, because it decides how many heads, hidden units and tokens of the vocabulary exist here at all.
3. Expert parallelism decides the same of experts, which tensor parallelism leaves alone; what follows sees only these.
4. Overlap of their exchange with products, since all of it may run again.
5. Recomputation: what runs again in the backward pass includes the collectives of both, and FSDP2 stands around it.
6. Compilation of attention, dense blocks and what is elementwise: FSDP2's hooks then gather weights around generated
   code, never inside of it.
7. Data parallelism (FSDP2), outermost, over whatever parameters are left: it must see final local shapes.
8. Storage on the device, then initial values by global name and expert id: no rank ever holds more than its part.
   Buffers are held whole by every rank: they begin at 0, and tables of routers are made.
9. Persistent gradient buffers for experts that FSDP2 does not own: they need storage to exist.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from moe_train.checkpoint.layout import Shard
from moe_train.config.kinds.depth import FullDepthConfig
from moe_train.config.kinds.engine import NativeEngineConfig, OwnEngineConfig
from moe_train.config.spec import ModelSpec
from moe_train.distribute.compiled import apply_compile
from moe_train.distribute.data import apply_data, shards_experts
from moe_train.distribute.expert import apply_expert
from moe_train.distribute.overlap import apply_overlap
from moe_train.distribute.recompute import apply_recompute
from moe_train.distribute.shards import parameter_shards
from moe_train.distribute.tensor import apply_tensor, clear_padding
from moe_train.model.build import tables
from moe_train.model.init import initial_value, initials
from moe_train.model.model import Model
from moe_train.model.transformer import build_on_meta
from moe_train.moe.gradient_buffers import GradientBuffers
from moe_train.moe.layers.layer import moe_layers_of
from moe_train.moe.routing import Vocabulary
from moe_train.parallel.mesh import Mesh

CutLayers = Callable[[Model, Mesh], None]
"""Applies tensor parallelism to a model on the meta device, as `apply_tensor`, but with plain tensors as parameters."""


@dataclass(frozen=True)
class DistributedModel:
    """Holds this rank's part of a model."""

    model: Model
    shards: dict[str, Shard]
    """Local tensors of all parameters by global name."""
    expert_gradients: tuple[GradientBuffers, ...]
    """Persistent gradients of the experts that FSDP2 does not own."""


def distribute(
    spec: ModelSpec,
    mesh: Mesh,
    *,
    seed: int,
    engine: OwnEngineConfig | None = None,
    vocabulary: Vocabulary | None = None,
    cut_layers: CutLayers | None = None,
) -> DistributedModel:
    """Builds, shards and initialises a model; only tables of routers need the vocabulary. Collective.

    Under the native engine, which is the default, data ranks share the parameters. On another engine's data ranks they
    are whole, and it divides the gradients of experts by the data degree, as those of all others; on a tensor group
    it needs `cut_layers`.
    """
    engine, model = engine or NativeEngineConfig(), build_on_meta(spec)
    native = engine if isinstance(engine, NativeEngineConfig) else None
    begins = initials(model, spec.init_scale)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    cut = apply_tensor if native else cut_layers
    if cut:
        cut(model, mesh)
    apply_expert(model, mesh, None if native else 1.0)
    apply_overlap(model, engine.overlap)
    apply_recompute(
        model, engine.recompute, holds_parts=native is not None and native.gather_dtype is not None
    )
    apply_compile(model, mesh, engine, rows_vary=not isinstance(spec.depth, FullDepthConfig))
    if native:
        apply_data(model, mesh, native)
    _allocate(model, mesh.world.device, is_offloaded=native is not None and native.offload)
    shards = parameter_shards(model, mesh, shapes)
    with torch.no_grad():
        clear_padding(model, mesh)
        for name, shard in shards.items():
            shape = tuple(shard.data.shape)
            value = initial_value(seed, name, begins[name], shard.global_shape, shard.offsets, shape)
            shard.data.copy_(value)
        for buffer in model.buffers():
            buffer.zero_()
    for router, table in tables(model, vocabulary, seed):
        # One rank's, for sums of fractions can differ in their last bits from machine to machine.
        router.table = mesh.world.from_main(table).to(mesh.world.device)
    expert_gradients = (
        [layer.experts.keep_gradients() for _, layer in moe_layers_of(model)]
        if native and not shards_experts(mesh, native)
        else []
    )
    return DistributedModel(model, shards, tuple(expert_gradients))


def _allocate(model: Model, device: torch.device, *, is_offloaded: bool) -> None:
    """Gives parameters storage in host memory if they are offloaded, else on the device, where buffers always are."""
    model.to_empty(device="cpu" if is_offloaded else device)
    if is_offloaded and device.type != "cpu":
        for module in model.modules():
            for name, buffer in list(module.named_buffers(recurse=False)):
                setattr(module, name, torch.empty_like(buffer, device=device))
