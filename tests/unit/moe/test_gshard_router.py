"""GShard's two experts: which, with what weights, and what chance and capacity leave of them."""

import warnings

import pytest
import torch
from tiny_model import context, gate, normal

from moe_train.config.capacity import capacity
from moe_train.config.kinds.router.gshard import GShardRouterConfig
from moe_train.config.schema import Recipe
from moe_train.moe.capacity import within_capacity

TOKENS = 4000


def logits(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities]).log()


def same_tokens(config: GShardRouterConfig, *probabilities: float, training: bool = True):
    """Many tokens, all with the same probabilities."""
    made = gate(config, logits(*probabilities))
    return made(torch.ones(TOKENS, 1), context(40, TOKENS // 40, training))


def test_the_two_weights_sum_to_one():
    routing = gate(GShardRouterConfig(), logits(0.1, 0.6, 0.3))(torch.ones(1, 1), context(1, 1))
    assert routing.expert_ids.tolist() == [1, 2]
    torch.testing.assert_close(routing.weights, torch.tensor([2 / 3, 1 / 3]))


def test_a_second_expert_is_used_in_proportion_to_its_weight():
    routing = same_tokens(GShardRouterConfig(), 0.7, 0.3)
    assert (routing.choices == 0).sum() == TOKENS
    assert (routing.choices == 1).sum() / TOKENS == pytest.approx(0.3 / 0.5, abs=0.03)
    assert routing.weights[routing.choices == 1].unique().tolist() == [pytest.approx(0.3)]


def test_a_second_expert_above_the_threshold_is_always_used():
    assert (same_tokens(GShardRouterConfig(second_threshold=0.2), 0.7, 0.3).choices == 1).sum() == TOKENS


def test_every_second_expert_is_used_in_validation_or_if_the_recipe_says_so():
    assert len(same_tokens(GShardRouterConfig(), 0.99, 0.01, training=False).token_ids) == 2 * TOKENS
    assert len(same_tokens(GShardRouterConfig(second_expert="all"), 0.99, 0.01).token_ids) == 2 * TOKENS


def test_normalising_late_draws_from_the_plain_weight_and_leaves_a_sum_of_one():
    # Normalised early the second weight would be .2 / .7, and be used in 57% of the cases.
    routing = same_tokens(GShardRouterConfig(normalize_after_limit=True), 0.5, 0.2, 0.15, 0.15)
    assert (routing.choices == 1).sum() / TOKENS == pytest.approx(0.2 / 0.5, abs=0.03)
    weights = routing.normalized().weights
    totals = torch.zeros(TOKENS).index_add(0, routing.token_ids, weights)
    torch.testing.assert_close(totals, torch.ones(TOKENS))
    torch.testing.assert_close(weights[routing.choices == 1].unique(), torch.tensor([2 / 7]))


def test_a_token_left_with_a_second_choice_of_probability_zero_gets_nothing():
    # Both want expert 0, which serves one; the second choice of the other is exp(-150), in fp32 0.
    made = gate(
        GShardRouterConfig(normalize_after_limit=True, second_expert="all", jitter=0.0),
        torch.tensor([[150.0, 0.0, -1.0], [150.0, -1.0, 0.0]]),
    )
    routing = made(torch.eye(2), context(1, 2, training=True))
    kept = routing.keep(within_capacity(routing, 2, slots=1)).normalized()
    assert list(
        zip(kept.token_ids.tolist(), kept.expert_ids.tolist(), kept.weights.tolist(), strict=True)
    ) == [
        (0, 0, 1.0),
        (0, 1, 0.0),
        (1, 2, 0.0),
    ]
    kept.weights.square().sum().backward()
    assert made.weight.grad.isfinite().all()


def test_sampling_draws_the_second_from_the_softmax_without_the_first():
    routing = same_tokens(GShardRouterConfig(second_expert="sampling"), 0.2, 0.5, 0.3)
    assert routing.expert_ids[routing.choices == 0].unique().tolist() == [1]
    second = routing.expert_ids[routing.choices == 1]
    assert (second == 0).float().mean().item() == pytest.approx(0.4, abs=0.03)
    assert (second == 1).sum() == 0


def test_of_equal_tokens_one_slot_takes_the_first_choice_of_the_first_and_one_second_choice():
    routing = gate(GShardRouterConfig(), logits(0.6, 0.4))(torch.ones(9, 1), context(1, 9))
    kept = routing.keep(within_capacity(routing, 9, slots=1))
    assert kept.token_ids.tolist() == [0, 0]
    assert kept.expert_ids.tolist() == [0, 1]


def test_the_balance_loss_counts_first_choices():
    routing = gate(GShardRouterConfig(), logits(0.6, 0.3, 0.1))(torch.ones(4, 1), context(1, 4))
    assert routing.losses["balance"].item() == pytest.approx(3 * 0.6)


@pytest.mark.parametrize("factor", [0.5, 4.0])
def test_weights_after_the_limit_and_balance_agree_with_deepspeed(factor):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from deepspeed.moe.sharded_moe import top2gating
    scores, tokens = 2 * normal(24, 6), 24
    balance, combined, _, _ = top2gating(scores, factor, 1, top2_2nd_expert_sampling=False)
    made = gate(GShardRouterConfig(normalize_after_limit=True), scores)
    routing = made(torch.eye(tokens), context(1, tokens))
    slots = capacity("deepspeed", factor, tokens, 6, 2, 1)
    kept = routing.keep(within_capacity(routing, tokens, slots)).normalized()
    assert (len(kept.token_ids) < 2 * tokens) == (factor == 0.5)
    weights = torch.zeros(tokens, 6).index_put((kept.token_ids, kept.expert_ids), kept.weights)
    torch.testing.assert_close(weights, combined.sum(2))
    torch.testing.assert_close(routing.losses["balance"], balance)


def test_what_cannot_serve_a_recipe_says_why():
    recipe = Recipe()
    recipe.moe.num_experts = 1
    recipe.moe.router = GShardRouterConfig(second_threshold=0.0, jitter=1.0)
    found = [problem.key for problem in recipe.moe.router.check(recipe)]
    assert found == ["moe.num_experts", "moe.router.second_threshold", "moe.router.jitter"]
