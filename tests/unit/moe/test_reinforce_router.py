"""Routing as a policy: the draw, the gradient that its reward gives, and a policy that learns."""

import pytest
import torch
from tiny_model import context, gate, global_batch, normal, tiny_recipe, tiny_transformer

from moe_train.config.check import problems
from moe_train.config.kinds.router.reinforce import ReinforceRouterConfig
from moe_train.moe.policy import rewarded
from moe_train.results import MoEStats, Policy


def stats_of(policy: Policy | None) -> MoEStats:
    return MoEStats({}, {"z": torch.zeros(())}, {"z": 0.5}, policy)


def test_experts_are_drawn_from_the_softmax_in_training_and_the_likeliest_is_taken_in_validation():
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    made, x = gate(ReinforceRouterConfig(), logits), torch.ones(6000, 1)
    drawn = made(x, context(60, 100, training=True))
    share = torch.bincount(drawn.expert_ids, minlength=4) / 6000
    # 4 standard deviations of 6,000 draws
    torch.testing.assert_close(share, torch.softmax(logits[0], 0), rtol=0, atol=4 * (0.25 / 6000) ** 0.5)
    chosen = made(x, context(60, 100))
    assert set(chosen.expert_ids.tolist()) == {2}
    assert chosen.policy is None
    assert set(drawn.weights.tolist()) == {1.0}


def test_losses_of_the_policy_and_of_its_baseline_by_hand():
    policy = Policy(torch.tensor([-1.0, -0.5]), torch.tensor([2.0, 3.0]), 0.01, 0.02)
    got = rewarded(stats_of(policy), torch.tensor([2.5, 6.0]))
    assert float(got.losses["policy"]) == pytest.approx((-1.0 * 0.5 + -0.5 * 3.0) / 2)
    assert float(got.losses["value"]) == pytest.approx((0.5**2 / 2 + (3.0 - 0.5)) / 2)
    assert got.coefficients == {"z": 0.5, "policy": 0.01, "value": 0.02}
    assert got.policy is None
    assert rewarded(stats_of(None), torch.zeros(2)).losses.keys() == {"z"}


@pytest.mark.parametrize("baseline", [0.0, 2.5])
def test_on_average_the_gradient_is_that_of_the_expected_loss_whatever_the_baseline(baseline):
    logits = torch.tensor([0.3, -1.0, 0.8, 0.1], requires_grad=True)
    losses = torch.tensor([1.0, 4.0, 2.0, 0.5])
    (wanted,) = torch.autograd.grad(torch.softmax(logits, 0) @ losses, logits)
    average = torch.zeros(4)
    for expert, chance in enumerate(torch.softmax(logits.detach(), 0)):
        log_probability = torch.log_softmax(logits, 0)[expert : expert + 1]
        policy = Policy(log_probability, torch.tensor([baseline]), 1.0, 1.0)
        loss = rewarded(stats_of(policy), losses[expert : expert + 1]).losses["policy"]
        average += chance * torch.autograd.grad(loss, logits)[0]
    torch.testing.assert_close(average, wanted)


def test_the_reward_reaches_the_policy_and_not_the_baseline_which_does_not_reach_the_input():
    made = gate(ReinforceRouterConfig(), normal(3, 4))
    x = torch.eye(3).requires_grad_()
    policy = made(x, context(1, 3, training=True)).policy
    stats = rewarded(stats_of(policy), torch.tensor([1.0, 2.0, 3.0]))
    stats.losses["policy"].backward(retain_graph=True)
    assert made.weight.grad.abs().max() > 0
    assert x.grad.abs().max() > 0
    assert made.value_weight.grad is None
    x.grad = made.weight.grad = None
    stats.losses["value"].backward()
    assert made.value_weight.grad.abs().max() > 0
    assert made.value_offset.grad.abs().max() > 0
    assert x.grad is None
    assert made.weight.grad is None


def test_a_policy_finds_the_expert_with_the_smallest_loss():
    made = gate(ReinforceRouterConfig(), torch.zeros(1, 4))
    losses, x = torch.tensor([3.0, 1.0, 2.0, 3.0]), torch.ones(32, 1)
    for step in range(150):
        routing = made(x, context(4, 8, training=True, step=step))
        stats = rewarded(stats_of(routing.policy), losses[routing.expert_ids])
        loss = stats.losses["policy"] + stats.losses["value"]
        for parameter in made.parameters():
            parameter.grad = None
        loss.backward()
        with torch.no_grad():
            for parameter in made.parameters():
                parameter -= 0.2 * parameter.grad
    assert float(torch.softmax(made.weight[0].detach(), 0)[1]) > 0.8


def test_a_model_says_what_its_policies_drew_in_training_only():
    recipe = tiny_recipe("moe.router.kind=reinforce")
    model, batch = tiny_transformer(recipe), global_batch(recipe, 0)
    for training in (True, False):
        here = context(*batch.tokens.shape, training)
        stats = model(batch.tokens, here).moe
        assert all((layer.policy is not None) == training for layer in stats)
    assert problems(recipe) == []


def test_an_objective_without_a_loss_for_every_token_is_refused():
    recipe = tiny_recipe("moe.router.kind=reinforce", "objective.kind=consistency")
    assert [problem.key for problem in recipe.moe.router.check(recipe)] == ["moe.router.kind"]


def test_a_policy_that_no_loss_teaches_is_refused_and_its_entropy_may_be_raised_or_lowered():
    (problem,) = problems(tiny_recipe("moe.router.kind=reinforce", "moe.router.policy_coefficient=0"))
    assert "moe.router.policy_coefficient=0.0: must be above 0, or the policy learns nothing" in str(problem)
    for sign in (-1, 1):
        entropy = f"moe.router.entropy_coefficient={sign}"
        assert problems(tiny_recipe("moe.router.kind=reinforce", entropy)) == []
