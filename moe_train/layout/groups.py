"""Draws the groups that each degree of parallelism makes: which ranks are in one, and on how many hosts they are.

The two meshes are those of parallel/mesh.py: `data x tensor` and `replica x expert x expert_tensor`, the last axis of
each fastest. A host has consecutive ranks.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from moe_train.config.plan import ParallelPlan


@dataclass(frozen=True)
class Axis:
    """Describes all groups along one axis of a mesh of `workers` ranks."""

    name: str
    size: int
    """Ranks of a group."""
    stride: int
    """Distance of neighbours in a group."""
    workers: int

    @property
    def num_groups(self) -> int:
        """Returns the number of groups."""
        return self.workers // self.size

    def groups(self) -> Iterator[range]:
        """Yields the ranks of every group."""
        block = self.size * self.stride
        for start in range(0, self.workers, block):
            for first in range(start, start + self.stride):
                yield range(first, first + block, self.stride)

    def most_hosts(self, workers_per_host: int) -> int:
        """Returns the largest number of hosts that a group is on."""
        return max(len({rank // workers_per_host for rank in group}) for group in self.groups())


def axes(plan: ParallelPlan) -> tuple[Axis, ...]:
    """Returns the axes that have groups of more than one rank, those with neighbouring ranks first."""
    every = (
        Axis("tensor", plan.tensor, 1, plan.workers),
        Axis("expert_tensor", plan.expert_tensor, 1, plan.workers),
        Axis("exchange", plan.exchange, 1, plan.workers),
        Axis("expert", plan.expert, plan.expert_tensor, plan.workers),
        Axis("replica", plan.replicas, plan.exchange, plan.workers),
        Axis("data", plan.data, plan.tensor, plan.workers),
    )
    is_alone = plan.expert_tensor == 1  # then the exchange is the expert axis
    return tuple(axis for axis in every if axis.size > 1 and not (is_alone and axis.name == "expert"))


def ranks(group: range) -> str:
    """Writes the ranks of a group in few words: "0 to 7", or "0, 8, ..., 1016"."""
    if len(group) <= 3:
        return " and ".join(map(str, group)) if len(group) < 3 else ", ".join(map(str, group))
    if group.step == 1:
        return f"{group[0]} to {group[-1]}"
    return f"{group[0]}, {group[1]}, ..., {group[-1]}"
