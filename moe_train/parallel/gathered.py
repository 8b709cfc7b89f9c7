"""Frees the weights that FSDP2 gathered for passes without a backward pass."""

from torch import nn
from torch.distributed.fsdp import FSDPModule


def free_gathered(model: nn.Module) -> None:
    """Frees gathered weights, which FSDP2 does after a backward pass only: they would hide what is loaded next."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
