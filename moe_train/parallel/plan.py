"""The degrees of parallelism and the mesh of workers they make.

The mesh has two axes, `replica` (workers that hold the same experts; the expert-data axis) and `expert` (workers
that share one set of experts out). Ranks of one expert group are neighbours, so their traffic stays in a host.
Flattened, the two are the `data` axis, over which everything that is not an expert is sharded.
"""

from dataclasses import dataclass

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from moe_train.errors import LayoutError
from moe_train.parallel.world import World


@dataclass(frozen=True)
class ParallelPlan:
    """Degrees of parallelism: `data` workers, of which groups of `expert` share one set of experts."""

    data: int
    expert: int

    @property
    def replicas(self) -> int:
        """Workers that hold the same experts."""
        return self.data // self.expert

    @classmethod
    def of(cls, world_size: int, data: int | None, expert: int) -> "ParallelPlan":
        """The plan for `world_size` workers. Raises LayoutError if the degrees do not fit."""
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
    """This rank's place in the plan; the DeviceMesh is None with one worker."""

    plan: ParallelPlan
    world: World
    device_mesh: DeviceMesh | None
    flattened: DeviceMesh | None
    """Both axes as one: the `data` axis."""

    @classmethod
    def build(cls, plan: ParallelPlan, world: World) -> "Mesh":
        """Make the mesh and its process groups. Collective."""
        if world.size == 1:
            return cls(plan, world, None, None)
        mesh = init_device_mesh(
            world.device.type, (plan.replicas, plan.expert), mesh_dim_names=("replica", "expert")
        )
        return cls(plan, world, mesh, mesh[("replica", "expert")]._flatten("data"))

    @property
    def expert_rank(self) -> int:
        """Place of this rank in its expert group."""
        return self.world.rank % self.plan.expert

    @property
    def replica_rank(self) -> int:
        """Which copy of the experts this rank holds a part of."""
        return self.world.rank // self.plan.expert

    @property
    def data_rank(self) -> int:
        """Which share of the global batch this rank reads."""
        return self.world.rank

    @property
    def expert_group(self) -> dist.ProcessGroup | None:
        """The workers that share one set of experts out; None if this one holds them all."""
        return self._axis("expert").get_group() if self.plan.expert > 1 else None

    @property
    def data_axis(self) -> DeviceMesh:
        """All workers, flattened."""
        assert self.flattened is not None
        return self.flattened

    @property
    def replica_axis(self) -> DeviceMesh:
        """The workers that hold the same experts."""
        return self._axis("replica")

    def _axis(self, name: str) -> DeviceMesh:
        assert self.device_mesh is not None
        return self.device_mesh[name]
