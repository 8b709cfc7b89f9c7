"""The axes of the two meshes that the workers form, from one worker's view.

`data x tensor` is for what is not an expert: workers of one tensor group are neighbours. `replica x expert x
expert_tensor` is for experts: workers of one set of experts are neighbours, so their rows stay in a host. Both have all
workers; the degrees are those of config/plan.py.
"""

from dataclasses import dataclass, field

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
