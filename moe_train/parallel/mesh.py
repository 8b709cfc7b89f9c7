"""The axes of the two meshes that the workers form, from one worker's view.

`data x tensor` is for what is not an expert: workers of one tensor group are neighbours. `replica x expert x
expert_tensor` is for experts: workers of one set of experts are neighbours, so their rows stay in a host. Both have all
workers; the degrees are those of config/plan.py.
"""

from dataclasses import dataclass, field, fields

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from moe_train.config.plan import ParallelPlan
from moe_train.parallel.axis import Axis, Sharding
from moe_train.parallel.world import World


@dataclass(frozen=True)
class Mesh:
    """This rank's place on every axis; without arguments beside `world` it is that of a single worker."""

    world: World
    plan: ParallelPlan = field(default_factory=ParallelPlan)
    data: Axis = field(default_factory=Axis)
    """Workers that read different shares of the global batch, and hold the same part of every layer."""
    tensor: Axis = field(default_factory=Axis)
    """Workers that read the same share and hold different parts of every layer."""
    replica: Axis = field(default_factory=Axis)
    """Workers that hold the same part of the same experts."""
    expert: Axis = field(default_factory=Axis)
    """Workers that hold different experts, and together the same part of all."""
    expert_tensor: Axis = field(default_factory=Axis)
    """Workers that hold different parts of the same experts."""
    exchange: Axis = field(default_factory=Axis)
    """`expert` and `expert_tensor` together: workers that hold one set of experts, and exchange rows."""
    sharding: Sharding = field(default_factory=Sharding)
    """`data` in groups that shard what is not an expert."""
    expert_sharding: Sharding = field(default_factory=Sharding)
    """`replica` in groups that shard experts."""

    @classmethod
    def build(cls, plan: ParallelPlan, world: World) -> "Mesh":
        """Makes the meshes and their process groups. Collective."""
        assert plan.workers == world.size, (plan, world.size)
        if world.size == 1:
            return cls(world)
        device = world.device.type
        dense, data, sharding = _lay_out(device, "data", plan.data, plan.data_shards, tensor=plan.tensor)
        experts, replica, expert_sharding = _lay_out(
            device,
            "replica",
            plan.replicas,
            plan.replica_shards,
            expert=plan.expert,
            expert_tensor=plan.expert_tensor,
        )
        return cls(
            world,
            plan,
            data=data,
            tensor=Axis.along(dense["tensor"]),
            replica=replica,
            expert=Axis.along(experts["expert"]),
            expert_tensor=Axis.along(experts["expert_tensor"]),
            exchange=Axis.along(experts[("expert", "expert_tensor")]._flatten("exchange")),
            sharding=sharding,
            expert_sharding=expert_sharding,
        )

    def groups(self) -> dict[str, dist.ProcessGroup]:
        """Returns the process groups by the names of their axes: "data/exchange" if both have the same workers."""
        if self.world.size == 1:
            return {}
        assert dist.group.WORLD is not None
        groups = {dist.group.WORLD.group_name: dist.group.WORLD}
        names: dict[str, list[str]] = {}
        for name, axis in self._axes().items():
            if axis.group is not None:
                names.setdefault(axis.group.group_name, []).append(name)
                groups[axis.group.group_name] = axis.group
        return {"/".join(names.get(name, ["world"])): group for name, group in groups.items()}

    def use_groups(self) -> None:
        """Uses every process group once. Collective.

        NCCL makes the communicator of a group in its first collective, which hangs or fails once memory is full.
        """
        for group in self.groups().values():
            dist.all_reduce(torch.zeros(1, device=self.world.device), group=group)

    def _axes(self) -> dict[str, Axis]:
        axes = {field.name: getattr(self, field.name) for field in fields(self)}
        named = {name: axis for name, axis in axes.items() if isinstance(axis, Axis)}
        for whole, sharding in (("data", self.sharding), ("replica", self.expert_sharding)):
            if sharding.shard.size < named[whole].size:
                named |= {f"{whole}_shard": sharding.shard, f"{whole}_copy": sharding.copy}
        return named


def _lay_out(
    device: str, name: str, size: int, shards: int, **inner: int
) -> tuple[DeviceMesh, Axis, Sharding]:
    """Makes a mesh whose outermost axis, `name`, shards weights in groups of `shards` neighbours. Collective."""
    if shards == size:
        mesh = init_device_mesh(device, (size, *inner.values()), mesh_dim_names=(name, *inner))
        return mesh, Axis.along(mesh[name]), Sharding(Axis.along(mesh[name]), Axis(), mesh[name])
    copies, parts = f"{name}_copy", f"{name}_shard"
    mesh = init_device_mesh(
        device, (size // shards, shards, *inner.values()), mesh_dim_names=(copies, parts, *inner)
    )
    both = mesh[(copies, parts)]
    return (
        mesh,
        Axis.along(both._flatten(name)),
        Sharding(Axis.along(mesh[parts]), Axis.along(mesh[copies]), both),
    )
