"""What routers share: jitter of the input, the k largest, edges from a table."""

import pytest
import torch
from conftest import require_tool
from tiny_model import context, normal

from moe_kernels.select import Choice
from moe_train.moe.losses import TokenSets
from moe_train.moe.routers import scores
from moe_train.moe.routers.edges import table_routing
from moe_train.moe.routers.scores import (
    by_operations,
    figures_of,
    gate_logits,
    jittered,
    largest,
    softmax_choice,
)


def test_jitter_multiplies_the_input_by_one_plus_or_minus_its_size():
    x = torch.ones(64, 32)
    changed = jittered(x, 0.1, "layers.0.router", context(4, 16, training=True))
    assert 0.9 <= changed.min() < 0.91 < 1.09 < changed.max() <= 1.1
    assert torch.equal(jittered(x, 0.1, "layers.0.router", context(4, 16, training=False)), x)
    assert not torch.equal(changed[:16], changed[16:32])


def test_logits_are_the_product_in_fp32():
    x, weight = normal(5, 8).bfloat16(), normal(8, 3)
    assert torch.equal(gate_logits(x, weight), x.float() @ weight)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_largest_agree_with_a_sort(k):
    scores = normal(5, 40)  # of both signs
    values, ids = largest(scores, k)
    expected = scores.t().sort(dim=1, descending=True)
    assert torch.equal(ids, expected.indices[:, :k])
    assert torch.equal(values, expected.values[:, :k])


def test_equal_scores_go_to_the_lower_expert():
    assert largest(torch.zeros(4, 2), 3)[1].tolist() == [[0, 1, 2]] * 2


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_the_figures_are_those_of_torch_over_real_tokens(scale):
    logits, real = (scale * normal(7, 5)).requires_grad_(), torch.arange(7) < 4
    for is_real, rows in ((None, 7), (real, 4)):
        distribution = torch.distributions.Categorical(logits=logits.detach()[:rows])
        figures = figures_of(logits, (logits, 2 * logits[:, :3]), is_real)
        torch.testing.assert_close(figures.entropy, distribution.entropy().sum())
        torch.testing.assert_close(figures.top_probability, distribution.probs.amax(1).sum())
        softmaxes = [logits.detach()[:rows], 2 * logits.detach()[:rows, :3]]
        torch.testing.assert_close(figures.z, sum(each.logsumexp(1).square().sum() for each in softmaxes))
        squares = sum(each.var(1, unbiased=False).sum() for each in softmaxes) / 2
        torch.testing.assert_close(figures.logit_square, squares)
        assert not any(figure.requires_grad for figure in figures)


@pytest.mark.parametrize(("experts", "k"), [(1, 1), (5, 2), (64, 8)])
def test_the_kernel_and_the_operations_agree_in_everything_and_in_all_gradients(experts, k):
    require_tool("g++", "g++")
    logits = 3 * normal(40, experts)
    logits[0], logits[1] = 0, 100 * logits[1]  # ties, and a softmax with underflow
    found, twin = (make(logits.requires_grad_(), k) for make in (softmax_choice, by_operations))
    assert torch.equal(found.expert_ids, twin.expert_ids)
    assert found.expert_ids[0].tolist() == list(range(k))
    upstream = (normal(40, experts, seed=1), normal(40, k, seed=2), normal(1, seed=3).squeeze())
    gradients = []
    for one in (found, twin):
        assert not one.figures.entropy.requires_grad
        differentiable = (one.probabilities, one.weights, one.z)
        gradients.append(torch.autograd.grad(differentiable, logits, upstream)[0])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.figures, twin.figures, rtol=1e-5, atol=1e-6)
    for name in ("probabilities", "weights", "z"):
        torch.testing.assert_close(getattr(found, name), getattr(twin, name), rtol=1e-5, atol=1e-6)


def test_without_a_compiler_or_with_padding_the_operations_take_over(monkeypatch):
    logits, padding = normal(12, 4), torch.arange(12) < 9
    padded = softmax_choice(logits, 2, TokenSets(6, padding))
    squares = torch.logsumexp(logits, 1).square()
    torch.testing.assert_close(padded.z, (squares[:6].mean() + squares[6:9].mean()) / 2)
    monkeypatch.setattr(scores, "choose", lambda device: Choice("reference", None, "as the test asks"))
    monkeypatch.setattr(scores, "router_statistics", lambda *_: pytest.fail("there is no kernel"))
    assert torch.equal(softmax_choice(logits, 2).expert_ids, by_operations(logits, 2).expert_ids)


@pytest.mark.parametrize("choice", [softmax_choice, by_operations])
def test_logits_that_are_no_numbers_name_the_first_experts(choice):
    assert choice(torch.full((3, 4), torch.nan), 2).expert_ids.tolist() == [[0, 1]] * 3


def test_a_table_makes_edges_by_token_and_choice():
    routing = table_routing(torch.tensor([[2, 0], [1, 2]]), torch.tensor([[0.6, 0.4], [0.7, 0.3]]), 3)
    assert routing.token_ids.tolist() == [0, 0, 1, 1]
    assert routing.choices.tolist() == [0, 1, 0, 1]
    assert routing.expert_ids.tolist() == [2, 0, 1, 2]
    torch.testing.assert_close(routing.weights, torch.tensor([0.6, 0.4, 0.7, 0.3]))
    assert (routing.num_tokens, routing.num_experts, routing.num_choices) == (2, 3, 2)
