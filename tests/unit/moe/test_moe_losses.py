"""Balance and z losses at points where their value is known."""

import math

import pytest
import torch
from tiny_model import normal

from moe_train.moe.losses import TokenSets, balance_loss, z_loss


def test_balance_is_one_when_loads_and_probabilities_are_uniform():
    probabilities = torch.full((8, 4), 0.25)
    ids = torch.arange(8).remainder(4).unsqueeze(1)
    assert balance_loss(probabilities, ids, TokenSets(8)).value.item() == 1.0


def test_balance_is_the_number_of_experts_at_full_collapse():
    probabilities = torch.zeros(6, 5)
    probabilities[:, 2] = 1.0
    assert balance_loss(probabilities, torch.full((6, 1), 2), TokenSets(3)).value.item() == 5.0


def test_balance_can_be_below_one():
    # f = (.9, .1) and P = (.45, .55): 2 * (.405 + .055) = .92
    probabilities = torch.tensor([[0.45, 0.55]]).expand(10, 2)
    ids = torch.tensor([0] * 9 + [1]).unsqueeze(1)
    assert balance_loss(probabilities, ids, TokenSets(10)).value.item() == pytest.approx(0.92)


def test_balance_is_a_mean_over_groups_not_the_balance_of_the_mean():
    # Each group collapses to its own expert: E in both, though the loads of the two together are even.
    probabilities = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    ids = torch.tensor([[0], [0], [1], [1]])
    assert balance_loss(probabilities, ids, TokenSets(2)).value.item() == 2.0
    assert balance_loss(probabilities, ids, TokenSets(4)).value.item() == 1.0


def test_balance_counts_every_choice_once():
    # f = (3/6, 2/6, 1/6) over 3 tokens with 2 choices each; P = (.5, .3, .2): 3 * (.25 + .1 + .2/6) = 1.15
    probabilities = torch.tensor([[0.5, 0.3, 0.2]]).expand(3, 3)
    ids = torch.tensor([[0, 1], [0, 1], [0, 2]])
    assert balance_loss(probabilities, ids, TokenSets(3)).value.item() == pytest.approx(1.15)


def test_balance_pushes_through_probabilities_only():
    probabilities = torch.full((4, 2), 0.5, requires_grad=True)
    balance_loss(probabilities, torch.tensor([[0], [0], [0], [1]]), TokenSets(4)).value.backward()
    # d/dp_ti = E * f_i / T = 2 * (.75, .25) / 4
    torch.testing.assert_close(probabilities.grad, torch.tensor([[0.375, 0.125]]).expand(4, 2))


def test_z_at_zero_logits_is_the_squared_log_of_the_number_of_experts():
    assert z_loss(torch.zeros(7, 16)).item() == pytest.approx(math.log(16) ** 2)


def test_the_gradient_of_z_is_two_lse_p_over_t():
    logits = normal(5, 3).requires_grad_()
    z_loss(logits).backward()
    lse = torch.logsumexp(logits.detach(), 1, keepdim=True)
    torch.testing.assert_close(logits.grad, 2 * lse * torch.softmax(logits.detach(), 1) / 5)
