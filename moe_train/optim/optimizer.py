"""Optimizers over local tensors.

Updates are elementwise, so an optimizer needs to know nothing of sharding: it gets each rank's local tensors, and
its state has their shapes. The state is made at once, not at the first step, so that a checkpoint can be loaded
into it. Weight decay acts on matrices, not on norms.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from moe_train.config.kinds.optim import AdamWConfig, SGDConfig


def adamw(config: AdamWConfig, *, parameters: Mapping[str, Tensor]) -> torch.optim.Optimizer:
    """AdamW (1711.05101), fused into one pass over memory."""
    optimizer = torch.optim.AdamW(
        _groups(parameters, config.weight_decay),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,
    )
    for parameter in parameters.values():
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


def sgd(config: SGDConfig, *, parameters: Mapping[str, Tensor]) -> torch.optim.Optimizer:
    """Stochastic gradient descent; with momentum, its buffer starts at 0."""
    optimizer = torch.optim.SGD(
        _groups(parameters, config.weight_decay), lr=config.lr, momentum=config.momentum, fused=True
    )
    if config.momentum:
        for parameter in parameters.values():
            optimizer.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}
    return optimizer


def _groups(parameters: Mapping[str, Tensor], weight_decay: float) -> Sequence[dict[str, object]]:
    decayed = [parameter for parameter in parameters.values() if parameter.ndim > 1]
    plain = [parameter for parameter in parameters.values() if parameter.ndim <= 1]
    groups = ({"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]
