"""Tiny recipes of every kind of router with a balance loss, which weighs as much as the task, and padded batches."""

from dataclasses import replace

import torch

from moe_train.config.kinds.router.router import BALANCE_COEFFICIENTS, BalanceLossConfig
from moe_train.config.registry import REGISTRY
from moe_train.data.batch import Batch

BALANCED = sorted(
    name for name, kind in REGISTRY["moe.router"].items() if issubclass(kind.config, BalanceLossConfig)
)
OPTIONS = {
    "batch_priority": ("model.architecture=encoder", "objective.kind=masked"),
    "deepseek": ("moe.router.num_groups=4", "moe.router.top_groups=2"),
    "dense_to_sparse": ("moe.router.decay_steps=3", "moe.router.threshold=0.05"),
}


def balanced(kind: str) -> tuple[str, ...]:
    """Overrides of the tiny recipe: all losses of a set of tokens count, and the set is the batch."""
    config = REGISTRY["moe.router"][kind].config
    coefficients = [f"moe.router.{name}=1" for name in BALANCE_COEFFICIENTS if hasattr(config, name)]
    return (
        f"moe.router.kind={kind}",
        *OPTIONS.get(kind, ()),
        *coefficients,
        "moe.router.balance_over=batch",
        "moe.capacity_factor=null",
        "model.activation=gelu",
        "model.dropout=0.1",
        "optim.clip=null",
    )


def padded(batch: Batch) -> Batch:
    """The batch with padding of another length at the end of every sequence; one sequence has nothing else."""
    sequences, length = batch.tokens.shape
    lengths = torch.arange(sequences) * 5 % (length + 1)
    return replace(batch, is_real=torch.arange(length) < lengths.unsqueeze(1))
