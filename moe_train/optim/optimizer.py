"""Makes optimizers over local tensors.

Updates are elementwise, so these optimizers do not depend on sharding: they get each rank's local tensors, and their
state has the same shapes (only adafactor.py differs). The state is made at once, not at the first step, so that a
checkpoint can be loaded into it.
"""

from collections.abc import Mapping

import torch

from moe_train.checkpoint.layout import Shard
from moe_train.config.kinds.optim import AdamWConfig, SGDConfig
from moe_train.optim.groups import groups_by_decay
from moe_train.parallel.mesh import Mesh


def set_rate_and_clip(
    optimizer: torch.optim.Optimizer, lr: float, norm: float, clip: float, device: torch.device
) -> None:
    """Has the next step use `lr`, and divide gradients of the global norm `norm` so that it is `clip` at most.

    Our optimizers divide by `grad_scale` as they read the gradients: clipping costs no pass of its own.
    """
    excess = norm / clip
    optimizer.grad_scale = torch.tensor(excess, device=device) if excess > 1 else None  # type: ignore[attr-defined]
    for group in optimizer.param_groups:
        group["lr"] = lr


def adamw(config: AdamWConfig, *, shards: Mapping[str, Shard], mesh: Mesh) -> torch.optim.Optimizer:
    """Makes AdamW (1711.05101), fused into one pass over memory."""
    optimizer = torch.optim.AdamW(
        groups_by_decay(shards, config.weight_decay),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,
    )
    for shard in shards.values():
        optimizer.state[shard.data] = {
            "step": torch.zeros((), dtype=torch.float32, device=shard.data.device),
            "exp_avg": torch.zeros_like(shard.data),
            "exp_avg_sq": torch.zeros_like(shard.data),
        }
    return optimizer


def sgd(config: SGDConfig, *, shards: Mapping[str, Shard], mesh: Mesh) -> torch.optim.Optimizer:
    """Makes stochastic gradient descent; with momentum, its buffer starts at 0."""
    optimizer = torch.optim.SGD(
        groups_by_decay(shards, config.weight_decay), lr=config.lr, momentum=config.momentum, fused=True
    )
    if config.momentum:
        for shard in shards.values():
            optimizer.state[shard.data] = {"momentum_buffer": torch.zeros_like(shard.data)}
    return optimizer
