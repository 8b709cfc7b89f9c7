"""Describes every local parameter as a box of a global tensor, which is all that checkpoints and norms need to know.

Every element of every parameter has one owner: where groups of workers hold copies, the first group owns them, and of
what is no expert the first worker of a tensor group. So a sum over the elements that a rank owns and then over ranks
counts each of them once.
"""

from torch import nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from moe_train.checkpoint.layout import Shard
from moe_train.model.model import Model
from moe_train.moe.experts import HIDDEN_DIM
from moe_train.moe.layers.layer import moe_layers_of
from moe_train.parallel.mesh import Mesh


def parameter_shards(model: Model, mesh: Mesh) -> dict[str, Shard]:
    """Returns this rank's local tensor of every parameter, by global name; `data` shares the parameter's storage."""
    experts = {f"{name}.experts" for name, _ in moe_layers_of(model)}
    return {
        name: _shard(name, parameter, name.rpartition(".")[0] in experts, mesh)
        for name, parameter in model.named_parameters()
    }


def _shard(name: str, parameter: nn.Parameter, is_expert: bool, mesh: Mesh) -> Shard:
    shape, offsets = tuple(parameter.shape), (0,) * parameter.ndim
    local = parameter.detach()
    if isinstance(local, DTensor):
        _, offsets = compute_local_shape_and_global_offset(shape, local.device_mesh, local.placements)
        local = local.to_local()
    if is_expert:
        # FSDP2 knows this rank's slices of its experts only; expert parallelism cut them from the global ones.
        for dim, axis in ((0, mesh.expert), (HIDDEN_DIM[name.rpartition(".")[2]], mesh.expert_tensor)):
            offsets = (*offsets[:dim], offsets[dim] + axis.rank * shape[dim], *offsets[dim + 1 :])
            shape = (*shape[:dim], shape[dim] * axis.size, *shape[dim + 1 :])
    sharding = mesh.expert_sharding if is_expert else mesh.sharding
    is_owner = sharding.copy.is_first and (is_expert or mesh.tensor.is_first)
    return Shard(local, shape, tuple(offsets), is_expert, is_owner=is_owner)
