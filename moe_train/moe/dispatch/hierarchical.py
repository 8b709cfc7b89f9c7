"""Implements expert parallelism over several hosts: a row is sent once to each host, then as in one_sided.py.

The work is done by moe_kernels/hierarchical.py. That a token with two experts on another host sends one row and gets
one back is what it saves over `all_to_all`.
"""

import logging

import torch.distributed as dist

from moe_kernels.errors import KernelError
from moe_kernels.hierarchical import Hierarchical
from moe_train.config.kinds.dispatch import HierarchicalDispatchConfig
from moe_train.moe.dispatch import one_sided
from moe_train.moe.dispatch.dispatcher import Dispatcher
from moe_train.moe.dispatch.fallback import fall_back, is_on_cpu

log = logging.getLogger(__name__)


def join(
    config: HierarchicalDispatchConfig, *, num_experts: int, group: dist.ProcessGroup | None, timeout_s: float
) -> Dispatcher:
    """Returns the dispatcher across hosts; where it cannot be had, `all_to_all`, and why. Collective over `group`."""
    if group is None:
        return one_sided.join(config, num_experts=num_experts, group=None, timeout_s=timeout_s)
    if not is_on_cpu(group):
        return fall_back(num_experts, group, timeout_s, "hierarchical runs on the CPU only")
    try:
        exchange = Hierarchical.join(group, num_experts, timeout_s, config.ranks_per_host)
    except KernelError as problem:
        return fall_back(num_experts, group, timeout_s, str(problem))
    hosts = exchange.hosts
    log.info(
        "Experts are exchanged by hierarchical, among %d x %d workers (hosts x workers of a host).",
        hosts.num_hosts,
        hosts.ranks_per_host,
    )
    return one_sided.OneSidedDispatcher(exchange)
