"""The largest probability of each router's distribution, summed over tokens: by hand, for every kind that has one."""

from dataclasses import replace

import pytest
import torch
from tiny_model import context, gate, moe_layer, normal, tiny_recipe

from moe_train.config.kinds import router as kinds
from moe_train.config.registry import build
from moe_train.moe.routers.scores import sum_of_largest

PROBABILITIES = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.1, 0.2, 0.3, 0.4]])
WHOLE = 0.5 + 0.4


def test_the_largest_of_each_real_token_counts():
    shares = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.5, 0.0], [0.3, 0.3, 0.4]])
    assert float(sum_of_largest(shares)) == pytest.approx(1.6)
    assert float(sum_of_largest(shares, torch.tensor([True, False, True]))) == pytest.approx(1.1)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (kinds.SwitchRouterConfig(), WHOLE),
        (kinds.TopKRouterConfig(), WHOLE),  # before the two weights are divided by their sum
        (kinds.GShardRouterConfig(), WHOLE),
        (kinds.BatchPriorityRouterConfig(), WHOLE),
        (kinds.ExpertChoiceRouterConfig(), WHOLE),
        (kinds.DenseToSparseRouterConfig(), WHOLE),
        (kinds.ReinforceRouterConfig(), WHOLE),
        (kinds.DeepSeekRouterConfig(scores="softmax"), WHOLE),
        (kinds.NoisyTopKRouterConfig(), 0.5 / 0.75 + 0.4 / 0.7),  # of the two that are kept
        (kinds.PrototypesRouterConfig(), (0.5 / 0.75 + 0.125 / 0.25 + 0.2 / 0.3 + 0.4 / 0.7) / 2),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_the_largest_probability_of_each_router_by_hand(config, expected):
    made = gate(config, PROBABILITIES.log())
    routing = made(torch.eye(2), context(1, 2))
    assert float(routing.top_probability) == pytest.approx(expected, rel=1e-6)
    first_alone = replace(context(1, 2), is_real=torch.tensor([[True, False]]))
    of_first = made(torch.eye(2), first_alone).top_probability
    assert float(of_first) == pytest.approx(
        float(made(torch.eye(2)[:1], context(1, 1)).top_probability), rel=1e-6
    )


def test_of_sigmoid_scores_it_is_the_largest_share():
    """Scores .8, .2, .5 and .5: .8 of 2."""
    logits = torch.logit(torch.tensor([[0.8, 0.2, 0.5, 0.5]]))
    routing = gate(kinds.DeepSeekRouterConfig(), logits)(torch.eye(1), context(1, 1))
    assert float(routing.top_probability) == pytest.approx(0.4)


def test_two_levels_multiply():
    """Each level has two options, all undecided: a half of a half for each of 3 tokens."""
    made = build(
        "moe.router",
        kinds.HierarchicalTopKRouterConfig(num_groups=2),
        d_model=5,
        num_experts=4,
        group=1,
        site="",
    )
    for weight in made.parameters():
        weight.data.zero_()
    assert float(made(normal(3, 5), context(1, 3)).top_probability) == pytest.approx(0.75)


@pytest.mark.parametrize("kind", ["soft", "smear"])
def test_a_mixture_that_is_even_has_equal_parts(kind):
    """Of 8 experts, with a slot each, over 6 real tokens of 8."""
    slots = ("moe.router.slots_per_expert=1",) if kind == "soft" else ()
    layer = moe_layer(tiny_recipe(f"moe.router.kind={kind}", *slots))
    for weight in layer.router.parameters():
        weight.data.zero_()
    real = torch.tensor([[True] * 4, [True, True, False, False]])
    _, stats = layer(normal(8, 32), replace(context(2, 4), is_real=real))
    assert float(stats.router_top_probability) == pytest.approx(6 / 8)


@pytest.mark.parametrize("kind", ["random", "thor", "base", "sinkhorn"])
def test_without_a_distribution_there_is_none(kind):
    layer = moe_layer(
        tiny_recipe(f"moe.router.kind={kind}", "moe.capacity_factor=null", "moe.eval_capacity_factor=null")
    )
    _, stats = layer(normal(8, 32), context(2, 4))
    assert float(stats.router_top_probability) == 0
