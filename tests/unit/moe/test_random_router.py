"""Routing by chance: uniform, new at each step, fixed in validation."""

import torch
from tiny_model import context

from moe_train.config.kinds.router.random import RandomRouterConfig
from moe_train.moe.routers.random import RandomRouter

E, B, S = 5, 40, 100


def experts(training: bool = True, step: int = 0) -> torch.Tensor:
    made = RandomRouter(RandomRouterConfig(), d_model=2, num_experts=E, group=1, site="layers.0.router")
    routing = made(torch.zeros(B * S, 2), context(B, S, training, step))
    assert torch.equal(routing.weights, torch.ones(B * S))
    return routing.expert_ids


def test_every_expert_gets_its_share():
    counts = torch.bincount(experts(), minlength=E).double()
    # 5 standard deviations of a multinomial with 4000 draws
    assert (counts - B * S / E).abs().max() < 5 * (B * S * 0.2 * 0.8) ** 0.5


def test_a_step_draws_anew_and_validation_does_not():
    agree = (experts(step=1) == experts(step=2)).double().mean().item()
    assert abs(agree - 1 / E) < 0.04
    assert torch.equal(experts(False, step=1), experts(False, step=2))
    assert len(experts(False).unique()) == E


def test_there_is_nothing_to_learn():
    made = RandomRouter(RandomRouterConfig(), d_model=2, num_experts=E, group=1, site="layers.0.router")
    assert not list(made.parameters())
