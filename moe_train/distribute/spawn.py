"""Makes all experts out of one: each becomes a copy of expert 0 with a part of its weights zeroed.

Here and not in the layer, because expert 0 lives on one worker of each expert group, and what makes copies differ must
not depend on who holds them. Its box is sent over the group, so a worker holds one expert more than its share for a
moment, and never all of them. What is zeroed is a function of (seed, parameter, expert, row, column).

EvoMoE (2112.14397), sec. 3. Its code has neither this step nor the share of zeros: it begins from a checkpoint that was
made by hand. That weights are zeroed, each by itself and the others not scaled up, is the paper's way from memory.
What idle experts were before, and what weight decay made of them, is overwritten; the gate keeps its initial values but
for weight decay. An optimizer begins anew with both: second moments of expert 0 are of gradients E times as large as a
copy's, and zeros under a count of updates that continues would miss their correction.
E experts, D rows of one's matrix, F columns.
"""

import logging
from collections.abc import Mapping

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from moe_train.checkpoint.layout import Shard
from moe_train.model.model import Model
from moe_train.moe.layers.layer import moe_layers_of
from moe_train.moe.routing import SpawningRouter
from moe_train.parallel.mesh import Mesh
from moe_train.random import RandomStream

log = logging.getLogger(__name__)


@torch.no_grad()
def spawn_experts(
    model: Model, shards: Mapping[str, Shard], mesh: Mesh, seed: int, updates: int
) -> list[str]:
    """Makes the copies in every layer whose router asks for them after so many updates. Collective.

    Returns the names of these layers' experts and routers: what an optimizer remembers of them is void.
    """
    begun: list[str] = []
    for layer_name, layer in moe_layers_of(model):
        router = layer.router
        share = router.spawn_mask(updates) if isinstance(router, SpawningRouter) else None
        if share is None:
            continue
        parts = (f"{layer_name}.experts.", f"{layer_name}.router.")
        of_layer = [name for name in shards if name.startswith(parts)]
        for name in of_layer:
            if shards[name].is_expert:
                _become_copies(name, shards[name], mesh, seed, share)
        begun += of_layer
    if begun and mesh.world.is_main:
        log.info("step %d: every expert is a copy of expert 0 from here on, under a mask of its own", updates)
    return begun


def _become_copies(name: str, shard: Shard, mesh: Mesh, seed: int, share: float) -> None:
    """Writes the copies over the experts of this rank, one by one."""
    original = _first_expert(shard.data, mesh)
    for expert, copy in enumerate(shard.data, start=shard.offsets[0]):
        zeroed = _draws(name, shard, expert, seed) < share
        copy.copy_(original.masked_fill(zeroed, 0.0))


def _first_expert(held: Float[Tensor, "E D F"], mesh: Mesh) -> Float[Tensor, "D F"]:
    """Returns expert 0 where this rank's box cuts it, which is alike on the expert group. Collective over that."""
    first = held[0].clone(memory_format=torch.contiguous_format)
    if mesh.expert.size > 1 and first.numel():
        dist.broadcast(first, group=mesh.expert.group, group_src=0)
    return first


def _draws(name: str, shard: Shard, expert: int, seed: int) -> Float[Tensor, "D F"]:
    """Draws uniform numbers for the box of an expert that this rank holds: each row is a stream of its own."""
    _, num_rows, num_columns = shard.global_shape
    first, count = expert * num_rows + shard.offsets[1], shard.data.shape[1]
    rows = torch.arange(first, first + count, device=shard.data.device)
    draws = RandomStream(seed, 0).uniform(f"{name}.mask", rows, num_columns)
    return draws.narrow(1, shard.offsets[2], shard.data.shape[2])
