"""Describes every local parameter as a box of a global tensor, which is all that checkpoints and norms need to know.

Every element of every parameter has one owner: where groups of workers hold copies, the first group owns them, and of
what is no expert the first worker of a tensor group. So a sum over the elements that a rank owns and then over ranks
counts each of them once.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from moe_train.checkpoint.layout import Shard
from moe_train.model.model import Model
from moe_train.moe.experts import HIDDEN_DIM
from moe_train.moe.layers.layer import moe_layers_of
from moe_train.parallel.mesh import Mesh


def parameter_shards(model: Model, mesh: Mesh, shapes: dict[str, torch.Size]) -> dict[str, Shard]:
    """Returns this rank's local tensor of every parameter, by global name; `data` shares the parameter's storage.

    `shapes` are those of the whole parameters.
    """
    experts = {f"{name}.experts" for name, _ in moe_layers_of(model)}
    return {
        name: _expert_shard(name, parameter, mesh, shapes[name])
        if name.rpartition(".")[0] in experts
        else _dense_shard(parameter, mesh, shapes[name])
        for name, parameter in model.named_parameters()
    }


def buffer_shards(model: Model, is_main: bool) -> dict[str, Shard]:
    """Returns every buffer, by global name: all ranks hold it whole, and the main one owns it."""
    return {
        name: Shard(buffer, tuple(buffer.shape), (0,) * buffer.ndim, is_owner=is_main)
        for name, buffer in model.named_buffers()
    }


def _expert_shard(name: str, parameter: nn.Parameter, mesh: Mesh, shape: torch.Size) -> Shard:
    """Describes experts: FSDP2 knows this rank's slices of its experts only, which expert parallelism has cut."""
    offsets = list(_offsets(parameter))
    for dim, axis in ((0, mesh.expert), (HIDDEN_DIM[name.rpartition(".")[2]], mesh.expert_tensor)):
        offsets[dim] += axis.rank * parameter.shape[dim]
    is_owner = mesh.expert_sharding.copy.is_first
    return Shard(
        local_part(parameter.detach()), tuple(shape), tuple(offsets), is_expert=True, is_owner=is_owner
    )


def _dense_shard(parameter: nn.Parameter, mesh: Mesh, shape: torch.Size) -> Shard:
    """Describes a parameter that is no expert. A plain one with another shape was cut by tensor parallelism."""
    local, offsets = local_part(parameter.detach()), list(_offsets(parameter))
    is_cut = _is_cut_by_tensor(parameter, mesh)
    if not isinstance(parameter, DTensor) and parameter.shape != shape:
        is_cut, dim = True, next(dim for dim, size in enumerate(shape) if parameter.shape[dim] != size)
        offsets[dim] = mesh.tensor.rank * parameter.shape[dim]
    is_owner = (is_cut or mesh.tensor.is_first) and mesh.sharding.copy.is_first
    return without_padding(Shard(local, tuple(shape), tuple(offsets), is_owner=is_owner))


def without_padding(shard: Shard) -> Shard:
    """Returns a box without the rows that pad a vocabulary, which are at the end of it."""
    if not shard.global_shape:
        return shard
    rows = max(0, shard.global_shape[0] - shard.offsets[0])
    return shard if len(shard.data) <= rows else replace(shard, data=shard.data[:rows])


def local_part(tensor: Tensor) -> Tensor:
    """Returns this rank's part of a tensor, which may not be distributed."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _is_cut_by_tensor(parameter: Tensor, mesh: Mesh) -> bool:
    """Returns whether the workers of a tensor group hold different parts."""
    if not isinstance(parameter, DTensor) or mesh.tensor.devices is None:
        return False
    names = parameter.device_mesh.mesh_dim_names or ()
    return any(
        name in (mesh.tensor.devices.mesh_dim_names or ()) and not placement.is_replicate()
        for name, placement in zip(names, parameter.placements, strict=True)
    )


def _offsets(parameter: Tensor) -> tuple[int, ...]:
    """Returns where this rank's part begins. The innermost axis of the mesh cut first, and the next one its parts."""
    offsets, sizes = [0] * parameter.ndim, list(parameter.shape)
    if isinstance(parameter, DTensor):
        mesh = parameter.device_mesh
        for axis in reversed(range(mesh.ndim)):
            placement = parameter.placements[axis]
            if placement.is_replicate():
                continue
            dim = placement.dim  # type: ignore[attr-defined]  # a Shard's or a _StridedShard's
            part = -(-sizes[dim] // mesh.size(axis))
            first = min(mesh.get_local_rank(axis) * part, sizes[dim])
            offsets[dim] += first
            sizes[dim] = min(part, sizes[dim] - first)
        assert tuple(sizes) == tuple(parameter.to_local().shape), (sizes, parameter.placements)
    return tuple(offsets)
