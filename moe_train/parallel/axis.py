"""An axis of the mesh: the workers that one kind of parallelism connects, and sums over them.

Whoever sums names the axis: "over all workers" is right for few things once workers share more than data.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True)
class Axis:
    """The workers along one axis, seen from one of them. With one worker there is no process group."""

    size: int = 1
    rank: int = 0
    """Place of this worker on the axis."""
    devices: DeviceMesh | None = None
    """The workers as torch's one-dimensional mesh."""

    @classmethod
    def along(cls, devices: DeviceMesh) -> "Axis":
        """Returns the axis of a one-dimensional mesh."""
        return cls(devices.size(), devices.get_local_rank(), devices) if devices.size() > 1 else cls()

    @property
    def is_first(self) -> bool:
        """Returns whether this worker holds what the axis holds once."""
        return self.rank == 0

    @property
    def group(self) -> dist.ProcessGroup | None:
        """Returns the process group; None with one worker, and where all workers are one axis without a mesh: torch
        takes it for its default group, which they are."""
        return None if self.devices is None else self.devices.get_group()

    def sum(self, values: Tensor) -> Tensor:
        """Sums `values` over the axis, in place, and returns it. Collective."""
        if self.size > 1:
            dist.all_reduce(values, group=self.group)
        return values

    def largest(self, values: Tensor) -> Tensor:
        """Takes the largest of each of `values` over the axis, in place, and returns them. Collective."""
        if self.size > 1:
            dist.all_reduce(values, dist.ReduceOp.MAX, group=self.group)
        return values

    def gather(self, values: Tensor) -> Tensor:
        """Returns the equally shaped `values` of all workers, stacked along a new first dimension. Collective."""
        if self.size == 1:
            return values.unsqueeze(0)
        gathered = values.new_empty(self.size * values.numel())
        dist.all_gather_single(gathered, values.flatten(), group=self.group)
        return gathered.view(self.size, *values.shape)

    def total(self, values: Tensor) -> list[float]:
        """Returns the sum over the axis as numbers: on CUDA this waits for the device. Collective."""
        numbers: list[float] = self.sum(values).tolist()
        return numbers


@dataclass(frozen=True)
class Sharding:
    """The workers of an axis in groups of neighbours: each group shards the weights of a layer, and has all of them."""

    shard: Axis = field(default_factory=Axis)
    """The workers of a group, which hold different parts."""
    copy: Axis = field(default_factory=Axis)
    """One worker of each group: they hold the same part."""
    devices: DeviceMesh | None = None
    """FSDP2 shards over this mesh: copy x shard, or shard alone if there is one group. None with one worker."""


def sum_together(parts: Sequence[Tensor], over: Axis) -> None:
    """Sums tensors of one type over an axis, in place, in one collective."""
    if over.size == 1 or not parts:
        return
    flat = over.sum(torch.cat([part.reshape(-1) for part in parts]))
    for part, total in zip(parts, flat.split([part.numel() for part in parts]), strict=True):
        part.copy_(total.view_as(part))
