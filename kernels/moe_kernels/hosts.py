"""Finds how the ranks of a group are distributed over hosts, and makes process groups within and across hosts.

With G ranks on each of H hosts, rank r = h*G + g is number g of host h. Its *peers* are the ranks with the same g.
"""

import socket
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist

from moe_kernels.agreement import gather
from moe_kernels.errors import KernelError
from moe_kernels.segments import host


@dataclass(frozen=True)
class Hosts:
    """Describes the position of this rank among the hosts of its group."""

    num_hosts: int
    ranks_per_host: int
    rank: int

    @property
    def host(self) -> int:
        """Returns the number of this rank's host."""
        return self.rank // self.ranks_per_host

    @classmethod
    def of(cls, group: dist.ProcessGroup | None, ranks_per_host: int | None = None) -> "Hosts":
        """Uses `ranks_per_host`, or detects hosts by boot id and host name if it is None; then it is collective.

        Raises KernelError, on all ranks, if hosts have different numbers of ranks, or ranks of one are not consecutive.
        """
        num_ranks = dist.get_world_size(group) if group is not None else 1
        size = _detected_size(gather(group, _name())) if ranks_per_host is None else ranks_per_host
        if size < 1 or num_ranks % size:
            raise KernelError(f"ranks_per_host={size}: must divide the number of ranks, {num_ranks}")
        return cls(num_ranks // size, size, dist.get_rank(group) if group is not None else 0)

    def inside(self, group: dist.ProcessGroup | None, timeout_s: float) -> dist.ProcessGroup | None:
        """Groups the ranks of this rank's host: `group` on a single host, None for a single rank. Collective."""
        if self.num_hosts == 1:
            return group
        first = self.host * self.ranks_per_host
        return _subgroup(group, range(first, first + self.ranks_per_host), timeout_s)

    def across(self, group: dist.ProcessGroup | None, timeout_s: float) -> dist.ProcessGroup | None:
        """Groups this rank's peers: `group` with one rank per host, None on a single host. Collective."""
        if self.ranks_per_host == 1 and self.num_hosts > 1:
            return group
        first = self.rank % self.ranks_per_host
        return _subgroup(
            group, range(first, self.num_hosts * self.ranks_per_host, self.ranks_per_host), timeout_s
        )


def _name() -> str:
    """Names this host. Containers on one machine share a boot id, but rarely a host name."""
    return f"{socket.gethostname()} {host()}"


def _detected_size(names: list[str]) -> int:
    """Returns the number of ranks per host, given the host of every rank."""
    sizes = Counter(names)  # in order of first appearance
    size = len(names) // len(sizes)
    if names != [name for name in sizes for _ in range(size)]:
        ranks = {name: [rank for rank, other in enumerate(names) if other == name] for name in sizes}
        places = ", ".join(f"{name.split()[0]} has {theirs}" for name, theirs in ranks.items())
        raise KernelError(
            f"ranks of one host must be consecutive, and every host must have the same number, but {places}; "
            "start the ranks host by host, or exchange rows by an all-to-all"
        )
    return size


def _subgroup(group: dist.ProcessGroup | None, members: range, timeout_s: float) -> dist.ProcessGroup | None:
    """Makes a process group of some ranks of `group`, by them alone, as other ranks may make other groups."""
    if group is None or len(members) == 1:
        return None
    ranks = dist.get_process_group_ranks(group)
    return dist.new_group(
        [ranks[member] for member in members],
        timeout=timedelta(seconds=timeout_s),
        use_local_synchronization=True,
        sort_ranks=False,
    )
