"""The sparsely-gated router: its gates, the chance of a choice by simulation, and both losses."""

import pytest
import torch
import torch.nn.functional as F
from tiny_model import context, normal, tiny_recipe, tiny_transformer

from moe_train.config.kinds.router.noisy_top_k import NoisyTopKRouterConfig
from moe_train.config.schema import Recipe
from moe_train.moe.losses import cv_squared
from moe_train.moe.routers.noise import normal as standard_normal
from moe_train.moe.routers.noisy_top_k import NoisyTopKRouter, chance_of_choice
from moe_train.moe.routers.scores import largest
from moe_train.moe.routing import Routing

T, D, E = 24, 10, 6


def router(k: int, scale: float = 1.0) -> NoisyTopKRouter:
    config = NoisyTopKRouterConfig(k=k)
    made = NoisyTopKRouter(config, d_model=D, num_experts=E, group=1, site="layers.0.router")
    with torch.no_grad():
        made.weight.copy_(scale * normal(D, E, seed=1))
        made.noise_weight.copy_(scale * normal(D, E, seed=2))
    return made


def table(routing: Routing) -> torch.Tensor:
    """The weights as a table of tokens and experts."""
    weights = torch.zeros(routing.num_tokens, E)
    return weights.index_put((routing.token_ids, routing.expert_ids), routing.weights.detach())


def test_all_experts_without_noise_are_a_dense_softmax():
    made, x = router(E), normal(T, D)
    torch.testing.assert_close(table(made(x, context(2, T // 2))), torch.softmax(x @ made.weight, 1))


def test_the_softmax_is_over_the_kept_logits():
    made, x = router(2), normal(T, D)
    routing = made(x, context(2, T // 2))
    kept, ids = (x @ made.weight).topk(2, dim=1)
    assert torch.equal(routing.expert_ids.view(T, 2), ids)
    torch.testing.assert_close(routing.weights.view(T, 2), torch.softmax(kept, 1))


@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_chance_of_a_choice_is_that_of_drawing_an_experts_noise_again(k):
    clean, deviation = normal(3, E), F.softplus(normal(3, E, seed=1)) + 0.01
    noisy = clean + deviation * normal(3, E, seed=2)
    values, _ = largest(noisy.t().contiguous(), k + 1)
    chances = chance_of_choice(clean, noisy, deviation, values, k)
    draws = 40_000
    for expert in range(E):
        again = noisy.repeat(draws, 1, 1)
        again[..., expert] = clean[:, expert] + deviation[:, expert] * normal(draws, 3, seed=3 + expert)
        chosen = (again.topk(k, dim=2).indices == expert).any(2).float().mean(0)
        torch.testing.assert_close(chances[:, expert], chosen, rtol=0, atol=0.012)


def test_matrices_of_zeros_route_by_noise_alone_and_evenly():
    sequences, length = 50, 100
    routing = router(2, scale=0.0)(torch.ones(sequences * length, D), context(sequences, length, True))
    counts = torch.bincount(routing.expert_ids, minlength=E).double()
    assert (counts / counts.mean() - 1).abs().max() < 0.1
    # The chances of all experts sum to k in the mean; each is then about k / E, so nearly even in a sequence.
    assert routing.losses["load"].item() < 0.01


def test_at_zero_weights_the_noise_has_the_deviation_of_softplus_of_zero_and_the_floor():
    """With all experts kept the weights tell the noisy logits, but for each token's mean."""
    sequences, length = 50, 100
    routing = router(E, scale=0.0)(normal(sequences * length, D), context(sequences, length, training=True))
    noisy = table(routing).log()
    centred = noisy - noisy.mean(1, keepdim=True)
    # ln 2 + 0.01; of 6 independent numbers 5 / 6 of the variance is left around their mean
    assert centred.std().item() * (E / (E - 1)) ** 0.5 == pytest.approx(0.703, rel=0.01)


def test_the_noise_of_each_logit_is_scaled_by_the_softplus_of_its_own_product():
    made, x, here = router(2), normal(T, D), context(2, T // 2, training=True)
    deviation = torch.log1p(torch.exp(x.double() @ made.noise_weight.double())) + 0.01
    noisy = x.double() @ made.weight.double() + deviation * standard_normal(E, made.site, here)
    kept, ids = noisy.topk(2, dim=1)
    expected = torch.zeros(T, E).scatter(1, ids, kept.softmax(1).float())
    torch.testing.assert_close(table(made(x, here)), expected)


def test_a_model_begins_with_zeros_in_both_matrices():
    model = tiny_transformer(tiny_recipe("moe.router.kind=noisy_top_k"))
    for layer in model.layers:
        assert not layer.feedforward.router.weight.any()
        assert not layer.feedforward.router.noise_weight.any()
        assert layer.feedforward.experts.w_in.any()


def test_losses_have_gradients_for_both_matrices():
    made = router(2)
    routing = made(normal(T, D), context(2, T // 2, training=True))
    for name, reached in (("importance", (True, True)), ("load", (True, True))):
        gradients = torch.autograd.grad(
            routing.losses[name], [made.weight, made.noise_weight], retain_graph=True
        )
        assert tuple(bool(gradient.any()) for gradient in gradients) == reached


def test_without_noise_the_load_is_the_count():
    made, x = router(2), normal(T, D)
    routing = made(x, context(1, T))
    counts = torch.bincount(routing.expert_ids, minlength=E).float()
    torch.testing.assert_close(routing.losses["load"], counts.var(correction=0) / counts.mean() ** 2)
    assert not routing.losses["load"].requires_grad


def test_cv_squared_by_hand_is_a_mean_over_groups():
    # (1, 3): variance 1, mean 2; (4, 4): 0
    assert cv_squared(torch.tensor([[1.0, 3.0]])).item() == pytest.approx(0.25)
    assert cv_squared(torch.tensor([[1.0, 3.0], [4.0, 4.0]])).item() == pytest.approx(0.125)


def test_equal_totals_have_no_gradient():
    totals = torch.full((1, 5), 2.0, requires_grad=True)
    cv_squared(totals).backward()
    assert torch.equal(totals.grad, torch.zeros(1, 5))


def test_one_expert_is_refused_since_its_weight_would_say_nothing():
    recipe = Recipe()
    recipe.moe.router = NoisyTopKRouterConfig(k=1)
    assert [problem.key for problem in recipe.moe.router.check(recipe)] == ["moe.router.k"]
