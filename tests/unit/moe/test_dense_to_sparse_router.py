"""The Dense-to-Sparse gate: its limits in closed form, its schedule, its switch."""

import math

import pytest
import torch
from tiny_model import context, normal, tiny_recipe

from moe_train.config.check import problems
from moe_train.config.kinds.router import DenseToSparseRouterConfig, SwitchRouterConfig
from moe_train.config.notes import notes
from moe_train.moe.losses import active_balance_loss, balance_loss
from moe_train.moe.routers.dense_to_sparse import DenseToSparseRouter
from moe_train.moe.routers.noise import gumbel
from moe_train.moe.routers.noise import normal as normal_noise
from moe_train.moe.routers.top_k import TopKRouter
from moe_train.moe.routing import Routing

EXPERTS = 4
LOGITS = torch.tensor([math.log(6.0), math.log(3.0), 0.0, 0.0])
"""Their softmax is 6/11, 3/11, 1/11, 1/11."""


def router(**options) -> DenseToSparseRouter:
    config = DenseToSparseRouterConfig(**{"decay_steps": 10, "hard_step": 20, **options})
    made = DenseToSparseRouter(config, d_model=1, num_experts=EXPERTS, group=1, site="layers.0.router")
    made.weight.data.copy_(LOGITS.unsqueeze(0))
    return made


def routed(made: DenseToSparseRouter, tokens: int, training: bool = True, step: int = 0) -> Routing:
    """Route one sequence of tokens that all have LOGITS."""
    return made(torch.ones(tokens, 1), context(1, tokens, training, step))


def active(routing: Routing) -> float:
    """Mean number of experts of a token."""
    return routing.expert_ids.numel() / routing.num_tokens


def test_without_end_of_heat_all_experts_are_active_with_equal_weights():
    routing = routed(router(temperature_start=1e6, temperature_end=1e6, gate="gumbel"), 16)
    assert active(routing) == EXPERTS
    torch.testing.assert_close(routing.weights, torch.full((64,), 1 / EXPERTS), rtol=1e-3, atol=0)


@pytest.mark.parametrize("options", [{"temperature_start": 1e-4, "temperature_end": 1e-4}, {"hard_step": 0}])
def test_without_heat_and_after_the_switch_one_expert_is_drawn_by_the_softmax(options):
    routing = routed(router(threshold=0.01, **options), 40_000)
    assert active(routing) == pytest.approx(1, abs=2e-3)
    drawn = torch.bincount(routing.expert_ids, minlength=EXPERTS) / routing.expert_ids.numel()
    torch.testing.assert_close(drawn, torch.softmax(LOGITS, 0), rtol=0, atol=0.01)  # 4 standard errors


def test_after_the_switch_a_token_has_exactly_one_expert():
    routing = routed(router(), 500, step=20)
    assert routing.num_choices == 1
    assert torch.equal(routing.token_ids, torch.arange(500))
    torch.testing.assert_close(routing.weights, torch.softmax(LOGITS, 0)[routing.expert_ids])
    assert len(routing.expert_ids.unique()) == EXPERTS, "the noise goes on"


def test_without_noise_and_threshold_the_gate_is_a_softmax_over_all_experts(monkeypatch):
    monkeypatch.setattr("moe_train.moe.routers.dense_to_sparse.gumbel", lambda *_: torch.zeros(3, EXPERTS))
    routing = routed(router(threshold=0.0, temperature_start=1.0, temperature_end=1.0, gate="gumbel"), 3)
    assert routing.expert_ids.tolist() == [0, 1, 2, 3] * 3
    assert routing.choices.tolist() == [0, 1, 2, 3] * 3
    torch.testing.assert_close(routing.weights, torch.softmax(LOGITS, 0).repeat(3))


def test_the_threshold_leaves_out_small_gates_and_renormalises_nothing():
    made = router(temperature_start=0.3, temperature_end=0.3, threshold=0.1, gate="gumbel")
    routing = routed(made, 2000)
    assert routing.weights.min() > 0.1
    assert 1 < active(routing) < 2.5
    kept = torch.zeros(2000).index_add_(0, routing.token_ids, routing.weights.detach())
    assert 1 - EXPERTS * 0.1 < kept.min() < 0.999
    assert kept.max() <= 1 + 1e-5


@pytest.mark.parametrize(("temperature", "expected"), [(2.0, 8.0), (0.3, 4.1), (0.1, 1.8)])
def test_as_many_experts_are_active_as_was_counted_for_equal_logits(temperature, expected):
    config = DenseToSparseRouterConfig(
        temperature_start=temperature, temperature_end=temperature, decay_steps=10
    )
    made = DenseToSparseRouter(config, d_model=1, num_experts=8, group=1, site="layers.0.router")
    made.weight.data.zero_()
    assert active(routed(made, 20_000)) == pytest.approx(expected, abs=0.06)


def test_the_weight_of_the_softmax_gate_has_neither_noise_nor_temperature():
    routing = routed(router(), 100)
    torch.testing.assert_close(routing.weights, torch.softmax(LOGITS, 0)[routing.expert_ids])
    assert routed(router(gate="gumbel"), 100).weights.unique().numel() > 100


def test_a_hard_gumbel_gate_keeps_the_weight_and_the_gradient_of_the_soft_one():
    hard, soft = router(gate="gumbel", hard_step=0), router(gate="gumbel", hard_step=None)
    one, all_of_them = routed(hard, 50), routed(soft, 50)
    first = all_of_them.weights[all_of_them.choices == 0]
    assert torch.equal(one.weights, first)
    assert one.weights.max() < 1
    gradients = [
        torch.autograd.grad(weight, made.weight)[0]
        for weight, made in ((one.weights[0], hard), (first[0], soft))
    ]
    torch.testing.assert_close(*gradients)
    assert gradients[0][0, one.expert_ids[0]] > 0


def test_validation_is_switch_in_every_phase():
    made, x = router(), normal(30, 1)
    switch = TopKRouter(
        SwitchRouterConfig(jitter=0.0), d_model=1, num_experts=EXPERTS, group=1, site="layers.0.router"
    )
    switch.weight.data.copy_(made.weight)
    for step in (0, 50):
        ours, theirs = (each(x, context(1, 30, False, step)) for each in (made, switch))
        assert torch.equal(ours.expert_ids, theirs.expert_ids)
        torch.testing.assert_close(ours.weights, theirs.weights)
        torch.testing.assert_close(ours.losses["balance"], theirs.losses["balance"])


def test_the_temperature_falls_in_a_line_or_by_a_factor_and_then_stays():
    linear = router(temperature_start=2.0, temperature_end=0.5)
    assert [linear.temperature(step) for step in (0, 5, 10, 99)] == pytest.approx([2, 1.25, 0.5, 0.5])
    factor = router(temperature_start=2.0, temperature_end=0.5, decay="exponential")
    assert [factor.temperature(step) for step in (0, 5, 10, 99)] == pytest.approx([2, 1, 0.5, 0.5])


def test_the_schedule_counts_updates_and_not_the_share_of_the_run():
    made = router(hard_step=3)
    assert [routed(made, 5, step=step).num_choices for step in (2, 3)] == [EXPERTS, 1]
    assert routed(router(hard_step=None), 5, step=10**6).num_choices == EXPERTS


@pytest.mark.parametrize("training", [True, False])
def test_before_the_gate_every_token_goes_to_the_first_expert_with_weight_1(training):
    made = router(diversify_steps=3, balance_coefficient=0.5, z_coefficient=0.5)
    routing = routed(made, 50, training, step=2)
    assert torch.equal(routing.token_ids, torch.arange(50))
    assert not routing.expert_ids.any()
    assert torch.equal(routing.weights, torch.ones(50))
    assert {name: loss.item() for name, loss in routing.losses.items()} == {"balance": 0, "z": 0}
    (gradient,) = torch.autograd.grad(sum(routing.losses.values()), made.weight)
    assert not gradient.any()


def test_the_gate_begins_where_the_phase_of_one_expert_ends_and_its_schedules_with_it():
    made, plain = router(diversify_steps=3, gate="gumbel"), router(gate="gumbel")
    assert [routed(made, 5, step=step).num_choices for step in (2, 3, 22, 23)] == [1, EXPERTS, EXPERTS, 1]
    assert routed(made, 5, False, step=3).weights.max() < 1, "the gate decides in validation too"
    for step in (0, 4, 10):
        noise = gumbel(EXPERTS, "layers.0.router", context(1, 5, True, step + 3))
        gates = torch.softmax((LOGITS + noise) / plain.temperature(step), 1)
        routing = routed(made, 5, step=step + 3)
        torch.testing.assert_close(routing.weights[routing.choices == 0], gates.max(1).values)


def test_copies_are_made_once_when_the_phase_ends_and_never_without_one():
    made = router(diversify_steps=3, diversify_mask=0.3)
    assert [made.spawn_mask(updates) for updates in (0, 2, 3, 4)] == [None, None, 0.3, None]
    assert [router().spawn_mask(updates) for updates in (0, 3)] == [None, None]


def test_edges_are_listed_by_token_with_the_largest_weight_first():
    routing = routed(router(gate="gumbel"), 20)
    slots = routing.token_ids * routing.num_choices + routing.choices
    assert torch.equal(slots, slots.sort().values)
    first = routing.choices[1:] == 0
    assert (routing.weights[1:][~first] <= routing.weights[:-1][~first]).all()


def test_the_balance_of_active_experts_is_that_of_switch_for_one_and_the_number_of_experts_for_all():
    probabilities = torch.softmax(normal(12, EXPERTS), 1)
    chosen = probabilities.argmax(1, keepdim=True)
    one_hot = torch.zeros(12, EXPERTS, dtype=torch.bool).scatter(1, chosen, True)
    ours = active_balance_loss(probabilities, one_hot, 6)
    torch.testing.assert_close(ours, balance_loss(probabilities, chosen, 6))
    assert active_balance_loss(probabilities, torch.ones_like(one_hot), 6).item() == pytest.approx(EXPERTS)


def test_noise_has_the_moments_of_its_distribution():
    draws = gumbel(8, "here", context(4, 5000, True))
    assert draws.isfinite().all()
    assert draws.mean().item() == pytest.approx(0.5772, abs=0.015)
    assert draws.var().item() == pytest.approx(math.pi**2 / 6, abs=0.04)
    draws = normal_noise(8, "here", context(4, 5000, True))
    assert draws.isfinite().all()
    assert draws.mean().item() == pytest.approx(0, abs=0.012)
    assert draws.var().item() == pytest.approx(1, abs=0.02)


SOUND = (
    "moe.router.kind=dense_to_sparse",
    "moe.router.decay_steps=10",
    "moe.router.hard_step=20",
    "moe.capacity_factor=null",
    "moe.eval_capacity_factor=null",
)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "moe.capacity_factor=1.25",
            "moe.capacity_factor=1.25: would drop tokens, and moe.router.kind=dense_",
        ),
        ("moe.eval_capacity_factor=2", "set moe.eval_capacity_factor=null."),
        ("moe.router.decay_steps=21", "moe.router.decay_steps=21: must be between 1 and the run's steps=20"),
        ("moe.router.hard_step=21", "moe.router.hard_step=21: must be between 0 and the run's steps=20"),
        ("moe.router.threshold=0.125", "moe.router.threshold=0.125: must be in [0, 1 / moe.num_experts)"),
        ("moe.router.temperature_end=0", "moe.router.temperature_end=0.0: must be above 0"),
        (
            "moe.router.temperature_end=2.5",
            "moe.router.temperature_end=2.5: must be at most moe.router.temperature_start=2.0, or the gate",
        ),
        (
            "moe.router.diversify_steps=-1",
            "diversify_steps=-1: must be at least 0 and below the run's steps=20",
        ),
        (
            "moe.router.diversify_steps=20",
            "diversify_steps=20: must be at least 0 and below the run's steps=20",
        ),
        ("moe.router.diversify_mask=0", "moe.router.diversify_mask=0.0: must be above 0 and below 1"),
        ("moe.router.diversify_mask=1", "moe.router.diversify_mask=1.0: must be above 0 and below 1"),
    ],
)
def test_a_recipe_that_the_gate_cannot_serve_is_refused(override, sentence):
    assert problems(tiny_recipe(*SOUND)) == []
    assert "until step 20 a token has up to 8" in notes(tiny_recipe(*SOUND))[0]
    (problem,) = problems(tiny_recipe(*SOUND, override))
    assert sentence in str(problem)


def test_a_phase_of_one_expert_leaves_its_gate_the_rest_of_the_run():
    phase = (*SOUND, "moe.router.diversify_steps=5", "moe.router.diversify_mask=0.25")
    decay, hard = "moe.router.decay_steps=15", "moe.router.hard_step=15"
    assert problems(tiny_recipe(*phase, decay, hard)) == []
    of_decay, of_hard = problems(tiny_recipe(*phase, "moe.router.decay_steps=16"))
    assert (
        "moe.router.decay_steps=16: must be between 1 and 15, the run's steps=20 less moe.router.diver"
        in str(of_decay)
    )
    assert "moe.router.hard_step=20: must be between 0 and 15" in str(of_hard)
    one, gate = notes(tiny_recipe(*phase, decay, hard))
    assert "until step 5 all tokens go to expert 0" in one
    assert "then all 8 become copies of it, each with 25% of its weights zeroed" in one
    assert "from step 5 until step 20 a token has up to 8" in gate
