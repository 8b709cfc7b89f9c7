"""The degrees of parallelism and the mesh of workers they make.

The mesh has two axes, `replica` (workers that hold the same experts; the expert-data axis) and `expert` (workers
that hold one set of experts together). Ranks of one expert group are neighbours, so their traffic stays in a host.
Flattened, the two are the `data` axis, over which everything that is not an expert is sharded. The `tensor` axis, whose
workers see the same tokens, has one worker.
"""

from dataclasses import dataclass, field

from torch.distributed.device_mesh import init_device_mesh

from moe_train.errors import LayoutError
from moe_train.parallel.axis import Axis
from moe_train.parallel.world import World


@dataclass(frozen=True)
class ParallelPlan:
    """Degrees of parallelism: `data` workers, of which groups of `expert` hold one set of experts together."""

    data: int
    expert: int

    @property
    def replicas(self) -> int:
        """Workers that hold the same experts."""
        return self.data // self.expert

    @classmethod
    def of(cls, world_size: int, data: int | None, expert: int) -> "ParallelPlan":
        """Returns the plan for `world_size` workers. Raises LayoutError if the degrees do not fit."""
        plan = cls(data or world_size, expert)
        if plan.data != world_size:
            raise LayoutError(
                f"parallel.data={plan.data}: must equal the number of workers, which is {world_size}"
            )
        if plan.data % plan.expert:
            raise LayoutError(f"parallel.expert={plan.expert}: must divide parallel.data={plan.data}")
        return plan


@dataclass(frozen=True)
class Mesh:
    """This rank's place on every axis; without arguments beside `world` it is that of a single worker."""

    world: World
    data: Axis = field(default_factory=Axis)
    """Workers that read different shares of the global batch."""
    replica: Axis = field(default_factory=Axis)
    """Of these, the workers that hold the same experts."""
    expert: Axis = field(default_factory=Axis)
    """Of these, the workers that hold one set of experts together."""
    tensor: Axis = field(default_factory=Axis)
    """Workers that read the same share and hold different parts of a layer's weights."""

    @classmethod
    def build(cls, plan: ParallelPlan, world: World) -> "Mesh":
        """Makes the mesh and its process groups. Collective."""
        if world.size == 1:
            return cls(world)
        devices = init_device_mesh(
            world.device.type, (plan.replicas, plan.expert), mesh_dim_names=("replica", "expert")
        )
        return cls(
            world,
            data=Axis.along(devices[("replica", "expert")]._flatten("data")),
            replica=Axis.along(devices["replica"]),
            expert=Axis.along(devices["expert"]),
        )
