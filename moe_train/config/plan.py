"""The degrees of parallelism: how many workers there are along each axis of the two meshes that they form.

What is not an expert is laid out over `data x tensor`, experts over `replica x expert x expert_tensor`. Both meshes
have the same workers, so the expert degree need not divide the data degree: experts may be spread over tensor ranks.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ParallelPlan:
    """Holds degrees that fit together: data * tensor = replicas * expert * expert_tensor = workers."""

    data: int = 1
    """Shares of the global batch."""
    tensor: int = 1
    """Workers that read the same share and hold different parts of each layer."""
    expert: int = 1
    """Shares of the experts of a layer."""
    expert_tensor: int = 1
    """Parts that each expert is cut into."""
    sequence: bool = False
    """Between the blocks, the workers of a tensor group hold different positions."""
    shard: int | None = None
    """Neighbours on the data axis that shard the weights; every such group has all of them. None: the whole axis."""

    @property
    def workers(self) -> int:
        """Returns the number of workers."""
        return self.data * self.tensor

    @property
    def exchange(self) -> int:
        """Returns the number of workers that hold one set of experts together, and exchange rows."""
        return self.expert * self.expert_tensor

    @property
    def replicas(self) -> int:
        """Returns the number of workers that hold the same part of the same experts."""
        return self.workers // self.exchange

    @property
    def data_shards(self) -> int:
        """Returns the number of parts of what is not an expert along the data axis."""
        return self.shard or self.data

    @property
    def replica_shards(self) -> int:
        """Returns the number of parts of an expert along `replica`: the replicas in a group that shards weights."""
        return self.replicas if self.shard is None else max(1, self.shard * self.tensor // self.exchange)

    @property
    def sums_experts_apart(self) -> bool:
        """Returns whether gradients of experts are summed over other workers than `data`, over which all others are."""
        return self.exchange > 1 or self.tensor > 1

    @property
    def expert_gradient_factor(self) -> float:
        """Returns what makes the gradients of experts those of the mean loss over data ranks.

        The exchange sums a gradient over the workers of a set of experts, and an average over replicas follows: that
        is the sum over all workers, divided by `replicas`. Wanted is the sum divided by `data`.
        """
        return self.replicas / self.data
