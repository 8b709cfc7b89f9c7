"""The two-level gate against its formulas written out, and against the flat gate where they must agree."""

import pytest
import torch
from tiny_model import context, normal, tiny_recipe

from moe_train.config.kinds.router.hierarchical_top_k import HierarchicalTopKRouterConfig
from moe_train.config.kinds.router.noisy_top_k import NoisyTopKRouterConfig
from moe_train.config.registry import build
from moe_train.moe.losses import TokenSets
from moe_train.moe.routers.hierarchical_top_k import Gate, estimated_load
from moe_train.moe.routers.noise import normal as standard_normal

B, S, D, E = 3, 9, 12, 8


def router(num_groups: int, top_groups: int, k: int):
    config = HierarchicalTopKRouterConfig(num_groups=num_groups, top_groups=top_groups, k=k)
    made = build("moe.router", config, d_model=D, num_experts=E, group=1, site="layers.0.router")
    for index, parameter in enumerate(made.parameters()):
        parameter.data.copy_(normal(*parameter.shape, seed=index) / D**0.5)
    return made


def dense(routing) -> torch.Tensor:
    """The weights as a table of tokens and experts."""
    table = torch.zeros(routing.num_tokens, routing.num_experts)
    return table.index_put((routing.token_ids, routing.expert_ids), routing.weights)


def test_weights_are_products_of_both_gates():
    made, x = router(4, 2, 2), normal(B * S, D, seed=9)
    routing = made(x, context(B, S))
    expected = torch.zeros(B * S, E)
    for token, row in enumerate(x):
        outer, inner = row @ made.group_weight, row @ made.weight
        groups = outer.topk(2).indices
        for group, part in zip(groups.tolist(), torch.softmax(outer[groups], 0), strict=True):
            expected[token, 2 * group : 2 * group + 2] = part * torch.softmax(
                inner[2 * group : 2 * group + 2], 0
            )
    torch.testing.assert_close(dense(routing), expected)
    assert routing.num_choices == 4
    torch.testing.assert_close(dense(routing).sum(1), torch.ones(B * S))


def test_all_groups_and_all_experts_are_a_dense_mixture_and_the_load_a_plain_count():
    made, x = router(2, 2, 4), normal(B * S, D, seed=9)
    routing = made(x, context(B, S, training=True))
    assert len(routing.token_ids) == B * S * E
    assert float(routing.losses["load"]) == pytest.approx(0.0, abs=1e-8)


@pytest.mark.parametrize("training", [True, False])
def test_one_group_is_the_flat_gate(training):
    made, x = router(1, 1, 3), normal(B * S, D, seed=9)
    flat = build(
        "moe.router", NoisyTopKRouterConfig(k=3), d_model=D, num_experts=E, group=1, site="layers.0.router"
    )
    flat.weight.data.copy_(made.weight)
    flat.noise_weight.data.copy_(made.noise_weight)
    here = context(B, S, training)
    one, other = made(x, here), flat(x, here)
    torch.testing.assert_close(dense(one), dense(other))
    for name in ("importance", "load"):
        torch.testing.assert_close(one.losses[name], other.losses[name])


@pytest.mark.parametrize(("over", "sets"), [("sequence", B), ("batch", 1)])
def test_losses_in_validation_are_those_of_counts_and_weights(over, sets):
    made, x = router(4, 2, 2), normal(B * S, D, seed=9)
    made.config.balance_over = over
    routing = made(x, context(B, S))
    importance = dense(routing).view(sets, -1, E).sum(1)
    load = (dense(routing) > 0).float().view(sets, -1, E).sum(1)  # Load_p * Load_i / |X_i| with plain counts
    for name, totals in (("importance", importance), ("load", load)):
        expected = (totals.var(1, correction=0) / totals.mean(1) ** 2).mean()
        torch.testing.assert_close(routing.losses[name], expected)


def test_the_load_of_a_group_is_shared_out_among_its_experts_by_its_own_tokens():
    made = router(4, 2, 2)
    groups = Gate(
        torch.tensor([[0], [0], [1]]), torch.ones(3, 1), torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7]])
    )
    chances = torch.tensor([[[0.5, 0.5], [9.0, 9.0]], [[0.1, 0.9], [9.0, 9.0]], [[9.0, 9.0], [0.2, 0.8]]])
    inside = Gate(torch.zeros(3, 2, 1).long(), torch.ones(3, 2, 1), chances)
    load = estimated_load(made._load(groups, inside, TokenSets(3)).totals, num_groups=2)
    # group 0: load 1.8, tokens 0 and 1; group 1: load 1.2, token 2 alone
    assert load[0].tolist() == pytest.approx([1.8 * 0.3, 1.8 * 0.7, 1.2 * 0.2, 1.2 * 0.8])


def test_at_first_it_is_pure_noise_and_both_gates_learn():
    made = router(4, 2, 2)
    for parameter in made.parameters():
        parameter.data.zero_()
    x = normal(40 * 25, D, seed=9)
    routing = made(x, context(40, 25, training=True))
    share = torch.bincount(routing.expert_ids, minlength=E) / len(routing.expert_ids)
    assert share.tolist() == pytest.approx([1 / E] * E, abs=0.02)
    (routing.weights.square().sum() + routing.losses["load"]).backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad.abs().max() > 0, name


def test_at_zero_weights_both_gates_have_noise_of_the_deviation_of_softplus_of_zero_and_the_floor():
    """With all experts kept the weights tell the noisy logits of each gate, but for their mean."""
    made = router(2, 2, 4)
    for parameter in made.parameters():
        parameter.data.zero_()
    weights = dense(made(normal(50 * 100, D, seed=9), context(50, 100, training=True))).detach()
    inside = weights.unflatten(1, (2, 4))
    for noisy in (inside.sum(2).log(), inside.log()):
        options = noisy.shape[-1]
        centred = noisy - noisy.mean(-1, keepdim=True)
        # ln 2 + 0.01; around the mean of n independent numbers (n - 1) / n of the variance is left
        assert centred.std().item() * (options / (options - 1)) ** 0.5 == pytest.approx(0.703, rel=0.01)


def test_the_noise_of_each_logit_is_scaled_by_the_softplus_of_its_own_product():
    made, x, here = router(4, 2, 2), normal(B * S, D, seed=9), context(B, S, training=True)

    def noisy(weight, noise_weight, site):
        deviation = torch.log1p(torch.exp(x @ noise_weight)) + 0.01
        return x @ weight + deviation * standard_normal(weight.shape[1], site, here)

    outer = noisy(made.group_weight, made.group_noise_weight, f"{made.site}.groups")
    inner = noisy(made.weight, made.noise_weight, made.site).unflatten(1, (4, 2))
    kept, groups = outer.topk(2, dim=1)
    shares = torch.zeros(B * S, 4).scatter(1, groups, kept.softmax(1))
    expected = (shares.unsqueeze(2) * inner.softmax(2)).flatten(1)
    torch.testing.assert_close(dense(made(x, here)), expected)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("moe.router.num_groups=3", "moe.router.num_groups"),
        ("moe.router.num_groups=1", "moe.router.num_groups"),
        ("moe.router.top_groups=1", "moe.router.top_groups"),
        ("moe.router.k=3", "moe.router.k"),
    ],
)
def test_what_does_not_fit_is_refused(override, key):
    recipe = tiny_recipe("moe.router.kind=hierarchical_top_k", override)
    assert [problem.key for problem in recipe.moe.router.check(recipe)] == [key]
