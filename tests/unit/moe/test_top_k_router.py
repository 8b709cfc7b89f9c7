"""The top-k router: choices, weights, jitter, entropy."""

import math

import pytest
import torch
from tiny_model import context, normal

from moe_train.config.kinds.router.switch import SwitchRouterConfig
from moe_train.config.kinds.router.top_k import TopKRouterConfig
from moe_train.moe.routers.top_k import TopKRouter
from moe_train.moe.routing import Routing


def router(config, logits: list[list[float]]) -> Routing:
    """Route tokens whose logits are given: the input is one-hot, the weight holds the rows."""
    table = torch.tensor(logits)
    made = TopKRouter(
        config, d_model=len(logits), num_experts=table.shape[1], group=1, site="layers.0.router"
    )
    made.weight.data.copy_(table)
    return made(torch.eye(len(logits)), context(1, len(logits)))


def test_switch_takes_the_largest_with_its_probability():
    routing = router(SwitchRouterConfig(), [[0.0, math.log(3), 0.0, 0.0], [math.log(9), 0.0, 0.0, 0.0]])
    assert routing.expert_ids.tolist() == [1, 0]
    torch.testing.assert_close(routing.weights, torch.tensor([0.5, 0.75]))


def test_the_weights_of_two_choices_sum_to_one_if_the_recipe_says_so():
    logits = [[math.log(6), math.log(3), 0.0, 0.0]]
    normalised = router(TopKRouterConfig(k=2), logits)
    plain = router(TopKRouterConfig(k=2, normalize=False), logits)
    assert normalised.expert_ids.tolist() == plain.expert_ids.tolist() == [0, 1]
    torch.testing.assert_close(normalised.weights, torch.tensor([2 / 3, 1 / 3]))
    torch.testing.assert_close(plain.weights, torch.tensor([6 / 11, 3 / 11]))


def switch(config: SwitchRouterConfig) -> TopKRouter:
    """A router over three experts whose softmax for every row of ones is 1/2, 1/3, 1/6."""
    made = TopKRouter(config, d_model=2, num_experts=3, group=1, site="layers.0.router")
    made.weight.data.copy_(torch.log(torch.tensor([3.0, 2.0, 1.0])) / 2)
    return made


def test_sampling_draws_an_expert_from_the_softmax_in_training_only():
    made, x = switch(SwitchRouterConfig(policy="sampling", jitter=0.0)), torch.ones(4 * 1024, 2)
    routing = made(x, context(4, 1024, training=True))
    share = torch.bincount(routing.expert_ids, minlength=3) / len(x)
    torch.testing.assert_close(share, torch.tensor([1 / 2, 1 / 3, 1 / 6]), atol=0.03, rtol=0)
    torch.testing.assert_close(routing.weights, torch.tensor([1 / 2, 1 / 3, 1 / 6])[routing.expert_ids])
    assert (made(x, context(4, 1024)).expert_ids == 0).all()
    assert not torch.equal(made(x, context(4, 1024, training=True, step=1)).expert_ids, routing.expert_ids)


def test_input_dropout_zeroes_a_share_of_the_routers_input_in_training_only():
    """Of two equal inputs, each 0 or doubled: 0, as it is, or doubled logits in shares 1/4, 1/2, 1/4."""
    made, x = switch(SwitchRouterConfig(input_dropout=0.5, jitter=0.0)), torch.ones(4 * 1024, 2)
    weights = made(x, context(4, 1024, training=True)).weights
    for value, share in ((1 / 3, 1 / 4), (1 / 2, 1 / 2), (9 / 14, 1 / 4)):
        assert float((weights - value).abs().lt(1e-5).float().mean()) == pytest.approx(share, abs=0.03)
    torch.testing.assert_close(made(x, context(4, 1024)).weights, torch.full((4 * 1024,), 0.5))


def test_ties_go_to_the_lower_expert():
    routing = router(TopKRouterConfig(k=3), [[0.0, 1.0, 0.0, 1.0, 0.0]])
    assert routing.expert_ids.tolist() == [1, 3, 0]


def test_edges_are_listed_by_token_and_choice():
    routing = router(TopKRouterConfig(k=2), [[0.0, 2.0, 1.0], [2.0, 1.0, 0.0]])
    assert routing.token_ids.tolist() == [0, 0, 1, 1]
    assert routing.choices.tolist() == [0, 1, 0, 1]
    assert routing.expert_ids.tolist() == [1, 2, 0, 1]


def test_entropy_is_a_sum_over_tokens_in_nats():
    routing = router(SwitchRouterConfig(), [[0.0] * 8, [50.0] + [0.0] * 7, [0.0] * 8])
    assert routing.figures is not None
    assert routing.figures.entropy.item() == pytest.approx(2 * math.log(8), abs=1e-5)


def test_losses_are_watched_even_where_their_coefficient_is_zero():
    routing = router(SwitchRouterConfig(balance_coefficient=0.0, z_coefficient=0.0), [[0.0] * 4] * 4)
    assert routing.losses["balance"].item() == pytest.approx(1.0)
    assert routing.losses["z"].item() == pytest.approx(math.log(4) ** 2)
    assert routing.coefficients == {"balance": 0.0, "z": 0.0}


def test_logits_are_made_in_fp32_from_bf16_input():
    made = TopKRouter(SwitchRouterConfig(), d_model=16, num_experts=4, group=1, site="layers.0.router")
    made.weight.data.copy_(normal(16, 4))
    x = normal(8, 16).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        routing = made(x, context(1, 8))
    expected = torch.softmax(x.float() @ made.weight, 1).max(1).values
    torch.testing.assert_close(routing.weights, expected, rtol=1e-6, atol=0)  # in bf16 1e-3 would be much


def test_kept_edges_keep_their_fields_together():
    routing = router(TopKRouterConfig(k=2), [[0.0, 2.0, 1.0], [2.0, 1.0, 0.0]])
    kept = routing.keep(torch.tensor([False, True, True, False]))
    assert kept.token_ids.tolist() == [0, 1]
    assert kept.expert_ids.tolist() == [2, 0]
    assert kept.choices.tolist() == [1, 0]
    assert torch.equal(kept.weights, routing.weights[[1, 2]])
    assert (kept.num_tokens, kept.num_experts, kept.num_choices) == (2, 3, 2)
    assert kept.losses == routing.losses
