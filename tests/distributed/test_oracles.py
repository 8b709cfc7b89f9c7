"""Other systems as oracles of training: the same weights in, the same losses for 20 updates.

megatron-core's GPT-MoE is a whole model beside ours, and DeepSpeed's a layer in it, each in layouts that it supports.
Balance losses of theirs are over a worker's tokens, so a routing group is a worker's share of the batch here.
"""

from typing import Any

import pytest
from deepspeed_layers import train_deepspeed
from gloo_workers import run_workers
from megatron_gpt import train_megatron
from oracle_run import given, train_ours

from moe_train.parallel.world import World

TOLERANCE = 1e-5
SGD = ("optim.kind=sgd", "optim.lr=0.1")
ADAMW = (
    "optim.kind=adamw",
    "optim.lr=1e-3",
    "optim.epsilon=1e-4",  # a smaller one would make much of gradients that are rounding
    "optim.schedule.kind=constant",
)
UNBALANCED = "moe.router.balance_coefficient=0"
SWITCH = ("moe.router.kind=switch", "model.activation=relu")
TOP_2 = ("moe.router.kind=top_k", "moe.router.k=2", "model.activation=swiglu")
TOP_2_RELU = ("moe.router.kind=top_k", "moe.router.k=2", "model.activation=relu")
TOP_3_RELU = ("moe.router.kind=top_k", "moe.router.k=3", "model.activation=relu")
UNTIED = ("model.tied_embeddings=false", "model.positions=learned", "moe.shared_experts=1")


def balanced(workers: int) -> tuple[str, ...]:
    """The balance and z losses of shares of the global batch of 8 sequences."""
    return (
        "moe.router.balance_coefficient=0.1",
        "moe.router.balance_over=group",
        f"moe.group_sequences={8 // workers}",
    )


Z = "moe.router.z_coefficient=0.01"

MEGATRON: dict[str, tuple[int, int, int, tuple[str, ...]]] = {
    "switch": (1, 1, 1, (*SGD, *SWITCH, UNBALANCED)),
    "top_2_adamw": (1, 1, 1, (*ADAMW, *TOP_2, UNBALANCED)),
    "untied": (1, 1, 1, (*SGD, *TOP_2, *UNTIED, *balanced(1), Z)),
    "expert": (2, 1, 2, (*SGD, *TOP_2, *balanced(2), Z)),
    "folded": (2, 2, 2, (*SGD, *TOP_2, *UNTIED, *balanced(1), Z)),
    "folded_switch_adamw": (2, 2, 2, (*ADAMW, *SWITCH, *balanced(1))),
}
"""Processes, tensor degree, expert degree, recipe."""

DEEPSPEED: dict[str, tuple[int, int, tuple[str, ...]]] = {
    "switch": (1, 1, (*SGD, *SWITCH, *balanced(1))),
    "top_2": (1, 1, (*SGD, *TOP_2_RELU, UNBALANCED)),
    "expert": (2, 2, (*SGD, *SWITCH, *balanced(2))),
    "expert_top_2_adamw": (2, 2, (*ADAMW, *TOP_2_RELU, UNBALANCED)),
    # At the rate of the others the 20th step has a near tie, and a token takes another third expert.
    "expert_top_3": (2, 2, (*SGD, "optim.lr=0.05", *TOP_3_RELU, *balanced(2))),
}
"""Processes, expert degree, recipe. DeepSpeed's balance loss is ours with one choice, and with three or more."""

Losses = tuple[list[float], list[float]]


def with_megatron(world: World) -> dict[str, Losses]:
    """The losses of ours and of megatron-core's in every case of as many processes."""
    losses = {}
    for name, (workers, tensor, expert, overrides) in MEGATRON.items():
        if workers == world.size:
            layout = (
                f"parallel.tensor={tensor}",
                f"parallel.expert={expert}",
                f"parallel.sequence={str(tensor > 1).lower()}",
            )
            recipe, weights = given(*overrides)
            theirs = train_megatron(world, recipe, weights, tensor=tensor, expert=expert)
            losses[name] = (train_ours(world, *overrides, *layout), theirs)
    return losses


def with_deepspeed(world: World) -> dict[str, Losses]:
    """The losses of our model with our layers and with DeepSpeed's in every case of as many processes."""
    losses = {}
    for name, (workers, expert, overrides) in DEEPSPEED.items():
        if workers == world.size:
            recipe, weights = given(*overrides)
            theirs = train_deepspeed(world, recipe, weights, expert=expert)
            losses[name] = (train_ours(world, *overrides, f"parallel.expert={expert}"), theirs)
    return losses


@pytest.mark.distributed_exhaustive
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("with_oracle", [with_megatron, with_deepspeed])
def test_losses_are_those_of_another_system(with_oracle: Any, workers: int):
    ranks = run_workers(workers, with_oracle, timeout_s=280)
    assert ranks[0]
    for name, (ours, theirs) in ranks[0].items():
        assert ours[-2] < ours[0], f"{name}: learned nothing of the first batch"
        assert ours[-1] < ours[1], f"{name}: learned nothing of the second batch"
        assert ours == pytest.approx(theirs, rel=TOLERANCE), name
