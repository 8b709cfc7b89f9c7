"""DSelect-k: the smooth step, the codes, and what is left once they are settled."""

import math

import pytest
import torch
from tiny_model import context, normal, tiny_recipe

from moe_train.config.check import problems
from moe_train.config.kinds.router.dselect_k import DSelectKRouterConfig
from moe_train.config.notes import notes
from moe_train.moe.routers.dselect_k import DSelectKRouter, code_products, digit_entropy, smooth_step


def router(experts: int = 8, width: int = 5, **options) -> DSelectKRouter:
    config = DSelectKRouterConfig(**options)
    made = DSelectKRouter(config, d_model=width, num_experts=experts, group=1, site="")
    made.weight.data.copy_(0.1 * normal(*made.weight.shape, seed=1))
    return made


def some_steps(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def active(routing) -> torch.Tensor:
    """Experts of each token."""
    return torch.bincount(routing.token_ids, minlength=routing.num_tokens)


def test_the_smooth_step_by_hand():
    steps = smooth_step(torch.tensor([-0.6, -0.5, 0.0, 0.5, 0.6]), 1.0)
    assert steps.tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]
    assert smooth_step(torch.tensor([-1.0, 0.5]), 2.0).tolist() == [0.0, 0.84375]


def test_the_smooth_step_has_no_corner():
    t = torch.tensor([-0.7, -0.5, 0.5, 0.7], requires_grad=True)
    smooth_step(t, 1.0).sum().backward()
    assert t.grad.tolist() == [0.0, 0.0, 0.0, 0.0]


def test_an_expert_s_number_is_its_code_and_all_codes_sum_to_one():
    settled = torch.tensor([[[1.0, 0.0, 1.0]], [[0.0, 1.0, 0.0]]])
    products = code_products(settled, torch.ones(2, 1))
    assert products[:, 0].argmax(1).tolist() == [5, 2]
    assert products.sum().item() == 2
    products = code_products(some_steps(20, 3, 4), torch.ones(20, 3))
    torch.testing.assert_close(products.sum(2), torch.ones(20, 3))


def test_products_and_entropy_are_those_of_the_definition():
    steps, shares = some_steps(6, 2, 4), some_steps(6, 2)
    products = code_products(steps, torch.ones(6, 2))
    for number in range(16):
        digits = torch.tensor([number >> place & 1 for place in range(4)]).bool()
        one_by_one = torch.where(digits, steps, 1 - steps).prod(2)
        torch.testing.assert_close(products[:, :, number], one_by_one)
    torch.testing.assert_close(code_products(steps, shares), shares.unsqueeze(2) * products)
    torch.testing.assert_close(digit_entropy(steps).sum(2), torch.special.entr(products).sum(2))


def test_the_entropy_s_gradient_is_finite_where_a_digit_is_settled():
    steps = torch.tensor([[[0.0, 1.0, 0.5, 0.25]]], requires_grad=True)
    digit_entropy(steps).sum().backward()
    torch.testing.assert_close(steps.grad, torch.tensor([[[0.0, 0.0, 0.0, math.log(3)]]]))


def test_at_first_a_token_has_all_experts_with_weights_that_sum_to_one():
    routing = router()(normal(12, 5), context(1, 12))
    assert (active(routing) == 8).all()
    sums = torch.zeros(12).index_add_(0, routing.token_ids, routing.weights.detach())
    torch.testing.assert_close(sums, torch.ones(12))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_settled_selectors_leave_at_most_k_experts(k):
    made = router(k=k)
    made.weight.data[:, :-k].mul_(1e4)  # the digits, not the mixture
    routing = made(normal(40, 5), context(1, 40))
    assert active(routing).min() >= 1
    assert active(routing).max() == k


def test_leaving_out_experts_of_weight_zero_changes_no_gradient():
    made, x = router(), normal(30, 5)
    made.weight.data.mul_(8)
    routing = made(x, context(1, 30))
    assert 0 < len(routing.weights) < 240, "some are left out, some are not"
    value = normal(30, 8, seed=4)
    (sparse,) = torch.autograd.grad(
        (routing.weights * value[routing.token_ids, routing.expert_ids]).sum(), made.weight
    )
    outputs = x @ made.weight
    steps = smooth_step(outputs[:, :-2].unflatten(1, (2, 3)), 1.0)
    dense = (torch.softmax(outputs[:, -2:], 1).unsqueeze(2) * code_products(steps, torch.ones(30, 2))).sum(1)
    torch.testing.assert_close(sparse, torch.autograd.grad((dense * value).sum(), made.weight)[0])


def test_the_entropy_is_that_of_all_selectors_and_vanishes_once_they_are_settled():
    made = router(k=3)
    made.weight.data.zero_()
    even = made(normal(6, 5), context(1, 6)).losses["entropy"]
    torch.testing.assert_close(even, 3 * torch.log(torch.tensor(8.0)))
    made.weight.data.copy_(1e4 * normal(*made.weight.shape))
    assert made(normal(6, 5), context(1, 6)).losses["entropy"] < 1e-3


def test_one_expert_has_weight_one():
    routing = router(experts=1)(normal(4, 5), context(1, 4))
    assert routing.expert_ids.tolist() == [0] * 4
    torch.testing.assert_close(routing.weights, torch.ones(4))


SOUND = ("moe.router.kind=dselect_k", "moe.capacity_factor=null", "moe.eval_capacity_factor=null")


def test_the_parameters_are_those_that_the_recipe_counts():
    recipe = tiny_recipe(*SOUND)
    assert problems(recipe) == []
    assert "k=2 experts per token" in notes(recipe)[0]
    assert recipe.moe.router.num_parameters(5, 8) == router().weight.numel() == 5 * (2 * 3 + 2)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("moe.num_experts=6", "moe.num_experts=6: must be a power of two"),
        ("moe.router.k=9", "moe.router.k=9: must be between 1 and moe.num_experts=8"),
        ("moe.router.gamma=0", "moe.router.gamma=0.0: must be above 0"),
    ],
)
def test_what_cannot_be_is_refused(override, sentence):
    (problem,) = problems(tiny_recipe(*SOUND, override))
    assert sentence in str(problem)
