"""From a recipe to this rank's part of a model: the one place where the order of parallelism is written.

1. The whole model on the meta device: shapes, no storage.
2. Expert parallelism, because it decides which experts exist here at all; what follows sees only those.
3. Data parallelism (FSDP2), outermost, over whatever parameters are left: it must see final local shapes.
4. Storage on the device, then initial values by global name and expert id: no rank ever holds more than its part.
5. Persistent gradient buffers for experts that FSDP2 does not own: they need storage to exist.
"""

from dataclasses import dataclass

import torch

from moe_train.checkpoint.layout import Shard
from moe_train.config.schema import Recipe
from moe_train.distribute.data import apply_data
from moe_train.distribute.expert import apply_expert, moe_layers_of
from moe_train.distribute.shards import parameter_shards
from moe_train.model.init import initial_value
from moe_train.model.transformer import Transformer, build_on_meta
from moe_train.moe.experts import GradientBuffers
from moe_train.parallel.plan import Mesh


@dataclass(frozen=True)
class DistributedModel:
    """This rank's part of a model."""

    model: Transformer
    shards: dict[str, Shard]
    """Local tensors of all parameters by global name."""
    expert_gradients: tuple[GradientBuffers, ...]
    """Persistent gradients of the experts that FSDP2 does not own."""


def distribute(recipe: Recipe, mesh: Mesh, reshard_after_forward: bool) -> DistributedModel:
    """Build, shard and initialise the model of `recipe`. Collective."""
    model = build_on_meta(recipe)
    apply_expert(model, mesh)
    apply_data(model, mesh, reshard_after_forward)
    model.to_empty(device=mesh.world.device)
    shards = parameter_shards(model, mesh)
    with torch.no_grad():
        for name, shard in shards.items():
            value = initial_value(
                name,
                shard.global_shape,
                shard.offsets,
                tuple(shard.data.shape),
                shard.is_expert,
                recipe.seed,
                recipe.model.init_scale,
            )
            shard.data.copy_(value)
    kept = (
        [layer.experts.keep_gradients() for _, layer in moe_layers_of(model)]
        if mesh.plan.replicas == 1
        else []
    )
    return DistributedModel(model, shards, tuple(kept))
