"""megatron-core's pure functions as oracles for routing and its losses."""

import warnings

import pytest
import torch
from tiny_model import context, gate, normal
from torch import Tensor

from moe_train.config.capacity import capacity
from moe_train.config.kinds.router.batch_priority import BatchPriorityRouterConfig
from moe_train.config.kinds.router.top_k import TopKRouterConfig
from moe_train.moe.assignment import sinkhorn_plan
from moe_train.moe.capacity import within_capacity
from moe_train.moe.losses import TokenSets, balance_loss, z_loss
from moe_train.moe.routers.top_k import TopKRouter
from moe_train.moe.routing import Routing

T, D, E = 48, 32, 8


@pytest.fixture(scope="module")
def megatron():
    """megatron-core's routing functions; importing them takes seconds and warns of missing extensions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from megatron.core.transformer.moe import moe_utils
    return moe_utils


@pytest.mark.parametrize("choices", [1, 2, 3])
def test_balance_agrees_with_megatron(megatron, choices):
    probabilities = torch.softmax(normal(T, E), 1)
    ids = probabilities.topk(choices, dim=1).indices
    counts = torch.bincount(ids.reshape(-1), minlength=E)
    expected = megatron.switch_load_balancing_loss_func(
        probs=probabilities,
        tokens_per_expert=counts,
        total_num_tokens=T,
        topk=choices,
        num_experts=E,
        moe_aux_loss_coeff=1.0,
    )
    torch.testing.assert_close(balance_loss(probabilities, ids, TokenSets(T)).value, expected)


def test_z_agrees_with_megatron(megatron):
    logits = 3 * normal(T, E)
    torch.testing.assert_close(z_loss(logits), megatron.z_loss_func(logits, 1.0))


@pytest.mark.parametrize("choices", [1, 2, 4])
@pytest.mark.parametrize("normalize", [True, False])
def test_choices_and_weights_agree_with_megatron(megatron, choices, normalize):
    # Softmax of the kept logits is what normalising the kept probabilities gives.
    config = TopKRouterConfig(k=choices, normalize=normalize)
    router = TopKRouter(config, d_model=D, num_experts=E, group=1, site="layers.0.router")
    with torch.no_grad():
        router.weight.copy_(normal(D, E, seed=7) / D**0.5)
    x = normal(T, D)
    routing = router(x, context(3, T // 3))
    expected, chosen = megatron.topk_routing_with_score_function(
        x @ router.weight.detach(), choices, use_pre_softmax=not normalize
    )
    weights = torch.zeros(T, E).index_put((routing.token_ids, routing.expert_ids), routing.weights.detach())
    torch.testing.assert_close(weights, expected)
    assert torch.equal(weights > 0, chosen)


def test_sinkhorn_chooses_as_megatron_does(megatron):
    for seed in range(4):
        scores = normal(T, E, seed=seed) + normal(E, seed=9)
        expected = megatron.sinkhorn(scores)
        plan = sinkhorn_plan(scores.unsqueeze(0), 1e-4, 200)[0]
        torch.testing.assert_close(plan, expected, rtol=1e-2, atol=1e-6)
        assert torch.equal(plan.argmax(1), expected.argmax(1))


FACTORS = [0.3, 0.5, 1.0, 1.25, 2.0]


def limited(megatron, routing: Routing, order: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """Tables of tokens and experts: the edges that our limit keeps, and those that megatron-core's keeps.

    Theirs serves the tokens of an expert by falling `order`, all choices alike.
    """
    places = (routing.token_ids, routing.expert_ids)
    nothing = torch.zeros(T, E)
    probabilities = nothing.index_put(places, order[routing.token_ids])
    _, theirs = megatron.apply_router_token_dropping(
        probabilities, probabilities > 0, routing.num_choices, factor, drop_policy="probs"
    )
    slots = capacity("deepspeed", factor, T, E, routing.num_choices, 1)
    kept = within_capacity(routing, T, slots)
    return nothing.index_put(places, kept.float()).bool(), theirs


def routed(config: TopKRouterConfig | BatchPriorityRouterConfig) -> Routing:
    """T tokens in one group, more of them for the later experts than for the first."""
    with torch.no_grad():
        return gate(config, normal(T, E) + torch.linspace(0, 2, E))(torch.eye(T), context(1, T))


@pytest.mark.parametrize("factor", FACTORS)
def test_tokens_are_dropped_by_position_as_megatron_does(megatron, factor):
    # Falling numbers, because its own policy "position" leaves equal ones to topk, which may keep any of them.
    mine, theirs = limited(megatron, routed(TopKRouterConfig(k=1)), torch.arange(T, 0, -1.0), factor)
    assert torch.equal(mine, theirs)
    assert mine.sum() < T


@pytest.mark.parametrize("factor", FACTORS)
def test_tokens_are_dropped_by_probability_as_megatron_does(megatron, factor):
    routing = routed(BatchPriorityRouterConfig(k=1))
    mine, theirs = limited(megatron, routing, routing.priority, factor)
    assert torch.equal(mine, theirs)
    assert mine.sum() < T


@pytest.mark.parametrize("choices", [2, 3])
@pytest.mark.parametrize("factor", FACTORS)
def test_an_expert_keeps_as_many_of_several_choices_as_megatron_does(megatron, choices, factor):
    # Not which: megatron-core knows no first choices that come before all second ones.
    mine, theirs = limited(megatron, routed(TopKRouterConfig(k=choices)), torch.arange(T, 0, -1.0), factor)
    assert torch.equal(mine.sum(0), theirs.sum(0))
