"""Chooses the default dispatcher: the cheapest that reaches all experts.

The registry imports the chosen one, so a worker that shares no experts does not import the shared memory of others.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch.distributed as dist

from moe_kernels.errors import KernelError
from moe_kernels.hosts import Hosts
from moe_train.config.kinds.dispatch import DispatchConfig, HierarchicalDispatchConfig
from moe_train.config.registry import build, implementation
from moe_train.moe.dispatch.dispatcher import Dispatcher
from moe_train.moe.dispatch.fallback import fall_back, is_on_cpu
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
    place: dict[str, Any] = {"num_experts": num_experts, "group": group, "timeout_s": timeout_s}
    if not is_on_cpu(group):
        return _one_sided(config, place)
    try:
        hosts = Hosts.of(group)
    except KernelError as problem:
        return fall_back(**place, reason=str(problem))
    if hosts.num_hosts == 1:
        return _one_sided(config, place)
    if hosts.ranks_per_host == 1:
        return fall_back(**place, reason="every worker has a host of its own")
    of_hosts = HierarchicalDispatchConfig(ranks_per_host=hosts.ranks_per_host)
    return cast(Dispatcher, build("moe.dispatch", of_hosts, **place))


def _one_sided(config: DispatchConfig, place: Mapping[str, Any]) -> Dispatcher:
    """Joins with the user's own config, by which `one_sided` knows that it was not asked for by name."""
    return cast(Dispatcher, implementation("moe.dispatch", "one_sided")(config, **place))
