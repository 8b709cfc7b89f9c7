"""The default choice of a dispatcher: the cheapest that reaches all experts."""

import torch.distributed as dist

from moe_train.config.kinds.dispatch import DispatchConfig
from moe_train.moe.dispatch.all_to_all import AllToAllDispatcher
from moe_train.moe.dispatch.dispatcher import Dispatcher
from moe_train.moe.dispatch.local import LocalDispatcher


def choose(config: DispatchConfig, *, num_experts: int, group: dist.ProcessGroup | None) -> Dispatcher:
    """`local` where this worker holds all experts, else `all_to_all`."""
    chosen = LocalDispatcher if group is None else AllToAllDispatcher
    return chosen(config, num_experts=num_experts, group=group)
