"""Expert choice and batch-prioritised routing: what a group decides together, and why causal models refuse it."""

import math

import pytest
import torch
from tiny_model import context, moe_layer, normal, tiny_recipe

from moe_train.config.check import problems
from moe_train.config.kinds.router.batch_priority import BatchPriorityRouterConfig
from moe_train.config.kinds.router.expert_choice import ExpertChoiceRouterConfig
from moe_train.moe.capacity import within_capacity
from moe_train.moe.routers.batch_priority import BatchPriorityRouter
from moe_train.moe.routers.expert_choice import ExpertChoiceRouter

NULL = ("moe.capacity_factor=null", "moe.eval_capacity_factor=null")
ENCODER = ("model.architecture=encoder", "objective.kind=masked")


def expert_choice(logits: torch.Tensor, group: int = 1, **options) -> ExpertChoiceRouter:
    """A router whose input is one-hot, so that the weight's rows are the tokens' logits."""
    tokens, experts = logits.shape
    config = ExpertChoiceRouterConfig(**options)
    made = ExpertChoiceRouter(config, d_model=tokens, num_experts=experts, group=group, site="")
    made.weight.data.copy_(logits)
    return made


def batch_priority(width: int, experts: int, **options) -> BatchPriorityRouter:
    config = BatchPriorityRouterConfig(**options)
    made = BatchPriorityRouter(config, d_model=width, num_experts=experts, group=1, site="layers.0.router")
    made.weight.data.copy_(normal(width, experts, seed=5))
    return made


def test_every_expert_has_exactly_its_number_of_tokens_in_every_group():
    routing = expert_choice(normal(96, 8))(torch.eye(96), context(3, 32))
    for group in range(3):
        mine = routing.token_ids // 32 == group
        assert torch.bincount(routing.expert_ids[mine], minlength=8).tolist() == [8] * 8


def test_an_expert_takes_the_tokens_that_score_it_highest():
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0], [math.log(9), 0.0], [math.log(19), 0.0]])
    routing = expert_choice(logits, tokens_per_expert=1.0)(torch.eye(4), context(1, 4))
    assert list(zip(routing.token_ids.tolist(), routing.expert_ids.tolist(), strict=True)) == [
        (0, 1),
        (1, 1),
        (2, 0),
        (3, 0),
    ]
    torch.testing.assert_close(routing.weights, torch.tensor([0.5, 0.25, 0.9, 0.95]))


def test_few_tokens_have_no_expert_at_twice_the_fair_share():
    """0.0121 of the tokens with 8 normal logits of deviation 0.3: none is above its expert's upper quartile."""
    made, tokens = expert_choice(torch.eye(8)), 2**15
    routing = made(0.3 * normal(tokens, 8), context(1, tokens))
    assert 1 - len(routing.token_ids.unique()) / tokens == pytest.approx(0.0121, abs=0.002)


@pytest.mark.parametrize(
    ("tokens", "factor", "taken"), [(32, 2.0, 8), (32, 0.5, 2), (3, 1.0, 1), (4, 8.0, 4)]
)
def test_how_many_tokens_an_expert_takes(tokens, factor, taken):
    assert expert_choice(normal(4, 8), tokens_per_expert=factor).tokens_taken(tokens) == taken


def test_a_later_token_changes_what_an_earlier_one_gets():
    """So it must be refused where tokens are predicted from those before them."""
    router, x = batch_priority(6, 4, k=1, noise=0.0), normal(16, 6)
    made = ExpertChoiceRouter(ExpertChoiceRouterConfig(), d_model=6, num_experts=4, group=1, site="")
    made.weight.data.copy_(router.weight)
    other = x.clone()
    other[-1] *= 20

    def of_earlier(routing):
        kept = routing.keep(within_capacity(routing, 16, 2)) if routing.priority is not None else routing
        return {
            (t, e) for t, e in zip(kept.token_ids.tolist(), kept.expert_ids.tolist(), strict=True) if t < 15
        }

    for each in (router, made):
        assert any(
            of_earlier(each(x, context(1, 16))) != of_earlier(each(changed, context(1, 16)))
            for changed in (other, x.clone().index_copy(0, torch.tensor([15]), -other[-1:]))
        )


@pytest.mark.parametrize("kind", ["expert_choice", "batch_priority"])
def test_a_causal_model_refuses_it_and_an_encoder_does_not(kind):
    overrides = (f"moe.router.kind={kind}", *NULL)
    (problem,) = problems(tiny_recipe(*overrides))
    assert f"moe.router.kind={kind}: routes a token by later tokens too" in str(problem)
    assert problems(tiny_recipe(*overrides, *ENCODER)) == []


def test_a_full_expert_keeps_its_surest_tokens_wherever_they_are():
    router, x = batch_priority(6, 4, k=1, noise=0.0), normal(40, 6)
    routing = router(x, context(1, 40))
    kept = within_capacity(routing, 40, 3)
    for expert in range(4):
        mine = routing.expert_ids == expert
        best = routing.weights[mine].topk(min(3, int(mine.sum()))).values
        torch.testing.assert_close(routing.weights[mine & kept].sort(descending=True).values, best)


def test_the_kept_tokens_move_with_a_permutation():
    router, x = batch_priority(6, 4, noise=0.0), normal(40, 6)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))

    def kept(rows: torch.Tensor, names: torch.Tensor) -> set[tuple[int, int]]:
        routing = router(rows, context(1, 40))
        left = routing.keep(within_capacity(routing, 40, 7))
        return set(zip(names[left.token_ids].tolist(), left.expert_ids.tolist(), strict=True))

    assert kept(x, torch.arange(40)) == kept(x[order], order)


def test_first_choices_come_before_all_second_ones():
    router, x = batch_priority(6, 4, noise=0.0), normal(40, 6)
    routing = router(x, context(1, 40))
    kept = within_capacity(routing, 40, 5)
    for expert in range(4):
        mine = routing.expert_ids == expert
        if (mine & (routing.choices == 0)).sum() >= 5:
            assert not (mine & kept & (routing.choices == 1)).any()


@pytest.mark.parametrize(("priority", "first"), [("largest", 1), ("sum", 0)])
def test_the_largest_gate_or_the_sum_of_both_says_who_is_served_first(priority, first):
    """Both tokens want expert 0, which takes one: with gates .5 and .4, or with .6 and .25."""
    router = batch_priority(2, 3, priority=priority, noise=0.0)
    router.weight.data.copy_(torch.tensor([[0.5, 0.1, 0.4], [0.6, 0.25, 0.15]]).log())
    routing = router(torch.eye(2), context(1, 2))
    kept = routing.keep(within_capacity(routing, 2, 1))
    assert set(zip(kept.token_ids.tolist(), kept.expert_ids.tolist(), strict=True)) == {
        (first, 0),
        (0, 2),
        (1, 1),
    }


def test_the_layer_drops_the_least_sure():
    recipe = tiny_recipe("moe.router.kind=batch_priority", "moe.router.k=1", "moe.capacity_factor=0.5")
    layer = moe_layer(recipe)
    y, stats = layer(normal(64, 32), context(4, 16, training=True))
    assert int(stats.counts["dropped"]) == int((y.abs().sum(1) == 0).sum()) > 0


def test_noise_has_the_deviation_of_one_over_the_number_of_experts():
    router = batch_priority(6, 4, k=1)
    router.weight.data.zero_()
    routing = router(torch.zeros(20_000, 6), context(1, 20_000, training=True))
    # The mean of the largest of 4 standard normal draws is 1.0294.
    largest = torch.log(routing.weights) - torch.log(1 - routing.weights)
    assert largest.mean().item() == pytest.approx(1.0294 / 4 * 4 / 3 - math.log(3), abs=0.02)
    assert not torch.equal(routing.expert_ids, torch.zeros_like(routing.expert_ids))


def test_the_load_is_the_chance_that_another_draw_of_an_expert_s_noise_would_choose_it():
    router = batch_priority(3, 4, k=2, noise=2.0)
    clean, noisy = normal(1, 4, seed=1), normal(1, 4, seed=2)
    ids = noisy.topk(2).indices
    chance = router._chances(clean, noisy, ids, 0.5)[0]
    draws = clean[0] + 0.5 * normal(200_000, 4, seed=3)
    # The code's threshold is the k-th noisy logit, the expert's own included.
    counted = (draws > noisy[0, ids[0, 1]]).float().mean(0)
    torch.testing.assert_close(chance, counted, rtol=0, atol=0.005)


def test_even_tokens_lose_nothing_and_collapsed_ones_lose_e_minus_one():
    router = batch_priority(4, 4, k=1, noise=0.0)
    router.weight.data.copy_(torch.eye(4))
    even = router(torch.eye(4) * 3, context(1, 4)).losses
    assert even["importance"].item() == pytest.approx(0, abs=1e-6)
    assert even["load"].item() == pytest.approx(0, abs=1e-6)
    collapsed = router(torch.tensor([[60.0, 0, 0, 0]]).repeat(4, 1), context(1, 4)).losses
    assert collapsed["importance"].item() == pytest.approx(3, rel=1e-4)
    assert collapsed["load"].item() == pytest.approx(3, rel=1e-4)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ("moe.router.kind=expert_choice", "moe.router.tokens_per_expert=9"),
            "must be above 0 and at most moe.num",
        ),
        (
            ("moe.router.kind=batch_priority", "moe.router.k=9"),
            "moe.router.k=9: must be between 1 and moe.num_exp",
        ),
        (
            ("moe.router.kind=batch_priority", "moe.router.noise=-1"),
            "moe.router.noise=-1.0: must be at least 0",
        ),
    ],
)
def test_what_cannot_be_is_refused(overrides, sentence):
    (problem,) = problems(tiny_recipe(*overrides, *NULL, *ENCODER))
    assert sentence in str(problem)
