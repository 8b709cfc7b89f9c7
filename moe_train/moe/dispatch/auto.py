"""Chooses the default dispatcher: the cheapest that reaches all experts."""

import torch.distributed as dist

from moe_kernels.errors import KernelError
from moe_kernels.hosts import Hosts
from moe_train.config.kinds.dispatch import DispatchConfig, HierarchicalDispatchConfig
from moe_train.moe.dispatch import hierarchical, one_sided
from moe_train.moe.dispatch.dispatcher import Dispatcher
from moe_train.moe.dispatch.local import LocalDispatcher


def choose(
    config: DispatchConfig, *, num_experts: int, group: dist.ProcessGroup | None, timeout_s: float
) -> Dispatcher:
    """Returns `local` if this worker holds all experts, `one_sided` on one host, `hierarchical` on several hosts.

    `hierarchical` needs several workers on each host. Falls back to `all_to_all` if those are not available. Collective
    over `group`.
    """
    if group is None:
        return LocalDispatcher(config, num_experts=num_experts, group=None)
    if not one_sided.is_on_cpu(group):
        return one_sided.join(config, num_experts=num_experts, group=group, timeout_s=timeout_s)
    try:
        hosts = Hosts.of(group)
    except KernelError as problem:
        return one_sided.fall_back(num_experts, group, timeout_s, str(problem))
    if hosts.num_hosts == 1:
        return one_sided.join(config, num_experts=num_experts, group=group, timeout_s=timeout_s)
    if hosts.ranks_per_host == 1:
        return one_sided.fall_back(num_experts, group, timeout_s, "every worker has a host of its own")
    of_hosts = HierarchicalDispatchConfig(ranks_per_host=hosts.ranks_per_host)
    return hierarchical.join(of_hosts, num_experts=num_experts, group=group, timeout_s=timeout_s)
