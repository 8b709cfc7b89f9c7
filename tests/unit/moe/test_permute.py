"""Rows to expert order and back against index_add with autograd, with and without missing edges."""

import pytest
import torch
from torch import Tensor

from moe_train.moe.dispatch.local import ExpertOrder
from moe_train.moe.permute import sum_places
from moe_train.moe.routing import Routing

NUM_TOKENS, NUM_EXPERTS, D_MODEL = 7, 4, 5


def _routing(num_choices: int, is_full: bool, dtype: torch.dtype = torch.float32) -> Routing:
    """Random edges; without `is_full`, every third is missing and token 0 has none."""
    generator = torch.Generator().manual_seed(num_choices)
    index = torch.arange(NUM_TOKENS * num_choices)
    experts = torch.stack(
        [torch.randperm(NUM_EXPERTS, generator=generator)[:num_choices] for _ in range(NUM_TOKENS)]
    )
    routing = Routing(
        token_ids=index // num_choices,
        expert_ids=experts.flatten(),
        choices=index % num_choices,
        weights=torch.rand(index.numel(), generator=generator).to(dtype).requires_grad_(),
        num_tokens=NUM_TOKENS,
        num_experts=NUM_EXPERTS,
        num_choices=num_choices,
    )
    return routing if is_full else routing.keep((index % 3 != 1) & (index >= num_choices))


def _there_and_back(x: Tensor, routing: Routing) -> Tensor:
    order = ExpertOrder.of(routing)
    return order.combine(order.gather(x).square())


def _index_add(x: Tensor, routing: Routing) -> Tensor:
    """The slow, obviously right twin: no order, no slots."""
    rows = x[routing.token_ids].square() * routing.weights.unsqueeze(1).to(x.dtype)
    return torch.zeros_like(x).index_add(0, routing.token_ids, rows)


@pytest.mark.parametrize("is_full", [True, False])
@pytest.mark.parametrize("num_choices", [1, 2, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 3e-2)])
def test_rows_and_gradients_are_those_of_index_add(num_choices, is_full, dtype, tolerance):
    routing = _routing(num_choices, is_full)
    x = torch.randn(NUM_TOKENS, D_MODEL).to(dtype).requires_grad_()
    grad = torch.randn(NUM_TOKENS, D_MODEL).to(dtype)
    inputs = (x, routing.weights)
    got, wanted = _there_and_back(x, routing), _index_add(x, routing)
    close = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(got, wanted, **close)
    for mine, theirs in zip(
        torch.autograd.grad(got, inputs, grad), torch.autograd.grad(wanted, inputs, grad), strict=True
    ):
        torch.testing.assert_close(mine, theirs, **close)


@pytest.mark.parametrize("is_full", [True, False])
def test_gradients_agree_with_finite_differences(is_full):
    routing = _routing(2, is_full, torch.float64)
    x = torch.randn(NUM_TOKENS, D_MODEL, dtype=torch.float64, requires_grad=True)
    leaf = routing.weights.detach().requires_grad_()

    def apply(values: Tensor, weights: Tensor) -> Tensor:
        return _there_and_back(values, _with_weights(routing, weights))

    assert torch.autograd.gradcheck(apply, (x, leaf))


def _with_weights(routing: Routing, weights: Tensor) -> Routing:
    return Routing(
        routing.token_ids,
        routing.expert_ids,
        routing.choices,
        weights,
        routing.num_tokens,
        routing.num_experts,
        routing.num_choices,
    )


def test_rows_stand_by_expert_and_then_in_the_order_of_tokens():
    routing = Routing(
        token_ids=torch.tensor([0, 1, 2, 3]),
        expert_ids=torch.tensor([2, 0, 2, 0]),
        choices=torch.zeros(4, dtype=torch.long),
        weights=torch.ones(4),
        num_tokens=4,
        num_experts=3,
        num_choices=1,
    )
    order = ExpertOrder.of(routing)
    assert order.gather(torch.tensor([[10.0], [11.0], [12.0], [13.0]])).flatten().tolist() == [11, 13, 10, 12]
    assert order.counts.tolist() == [2, 0, 2]


def test_a_token_without_edges_gets_zeros_and_gives_none():
    routing = _routing(2, is_full=False)
    x = torch.randn(NUM_TOKENS, D_MODEL, requires_grad=True)
    y = _there_and_back(x, routing)
    y.sum().backward()
    assert not y[0].any()
    assert x.grad is not None
    assert not x.grad[0].any()


def test_without_any_row_every_token_gets_zeros():
    y = sum_places(torch.empty(0, D_MODEL), torch.zeros(3, 2, dtype=torch.long), torch.zeros(3, 2))
    assert y.tolist() == [[0.0] * D_MODEL] * 3
