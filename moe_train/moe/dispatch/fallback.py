"""Falls back to `all_to_all` where the workers cannot share memory, and says why."""

import logging

import torch.distributed as dist

from moe_train.config.kinds.dispatch import AllToAllDispatchConfig
from moe_train.moe.dispatch.all_to_all import AllToAllDispatcher
from moe_train.moe.dispatch.dispatcher import Dispatcher

log = logging.getLogger(__name__)


def is_on_cpu(group: dist.ProcessGroup) -> bool:
    """Returns whether the workers of `group` train on the CPU."""
    return "nccl" not in str(dist.get_backend_config(group))


def fall_back(num_experts: int, group: dist.ProcessGroup | None, timeout_s: float, reason: str) -> Dispatcher:
    """Returns `all_to_all`, and logs the reason in one line."""
    log.info("Experts are exchanged by all_to_all, since %s.", reason)
    config = AllToAllDispatchConfig()
    return AllToAllDispatcher(config, num_experts=num_experts, group=group, timeout_s=timeout_s)
