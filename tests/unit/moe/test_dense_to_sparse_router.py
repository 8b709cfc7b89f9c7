"""The Dense-to-Sparse gate: its limits in closed form, its schedule, its switch."""

import math

import pytest
import torch
from tiny_model import context, moe_layer, normal, tiny_recipe
from torch import Tensor

from moe_train.config.check import problems
from moe_train.config.kinds.router.dense_to_sparse import DenseToSparseRouterConfig
from moe_train.config.kinds.router.switch import SwitchRouterConfig
from moe_train.config.notes import notes
from moe_train.moe.layers.layer import MoELayer
from moe_train.moe.losses import TokenSets, active_balance_loss, balance_loss
from moe_train.moe.routers.dense_to_sparse import DenseToSparseRouter
from moe_train.moe.routers.noise import gumbel
from moe_train.moe.routers.noise import normal as normal_noise
from moe_train.moe.routers.top_k import TopKRouter
from moe_train.moe.routing import RouteContext, Routing

EXPERTS = 4
LOGITS = torch.tensor([math.log(6.0), math.log(3.0), 0.0, 0.0])
"""Their softmax is 6/11, 3/11, 1/11, 1/11."""
SOUND = (
    "moe.router.kind=dense_to_sparse",
    "moe.router.decay_steps=10",
    "moe.router.hard_step=20",
    "moe.capacity_factor=null",
    "moe.eval_capacity_factor=null",
)


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
    routing = routed(router(temperature_start=1e6, temperature_end=1e6), 16)
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
    assert len(routing.expert_ids.unique()) == EXPERTS, "the noise goes on"


def test_without_noise_and_threshold_the_gate_is_a_softmax_over_all_experts(monkeypatch):
    monkeypatch.setattr("moe_train.moe.routers.dense_to_sparse.gumbel", lambda *_: torch.zeros(3, EXPERTS))
    routing = routed(router(threshold=0.0, temperature_start=1.0, temperature_end=1.0), 3)
    assert routing.expert_ids.tolist() == [0, 1, 2, 3] * 3
    assert routing.choices.tolist() == [0, 1, 2, 3] * 3
    torch.testing.assert_close(routing.weights, torch.softmax(LOGITS, 0).repeat(3))


def test_the_threshold_leaves_out_small_gates_and_renormalises_nothing():
    made = router(temperature_start=0.3, temperature_end=0.3, threshold=0.1)
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
    for step in (0, 20):
        routing = routed(router(gate="softmax"), 100, step=step)
        torch.testing.assert_close(routing.weights, torch.softmax(LOGITS, 0)[routing.expert_ids])


def test_both_gates_choose_the_same_experts_and_only_weigh_them_differently():
    paper, code = router(), router(gate="softmax")
    for step in (0, 8, 20):
        ours, theirs = routed(paper, 50, step=step), routed(code, 50, step=step)
        slots = [each.token_ids * EXPERTS + each.expert_ids for each in (ours, theirs)]
        assert torch.equal(slots[0].sort().values, slots[1].sort().values)
        assert ours.weights.unique().numel() > 40


def mixture(layer: MoELayer, x: Tensor, at: RouteContext, temperature: float, threshold: float) -> Tensor:
    """EvoMoE's layer with every expert computed for every token: y = sum of g_e E_e(x) over experts with g_e > c."""
    noisy = x @ layer.router.weight + gumbel(layer.router.num_experts, layer.router.site, at)
    exponentials = torch.exp((noisy - noisy.amax(1, keepdim=True)) / temperature)
    gates = exponentials / exponentials.sum(1, keepdim=True)
    kept = torch.where(gates > threshold, gates, 0.0)
    hidden = torch.relu(torch.einsum("td,edf->tef", x, layer.experts.w_in))
    return torch.einsum("te,tef,efd->td", kept, hidden, layer.experts.w_out)


@pytest.mark.parametrize(("step", "temperature"), [(0, 2.0), (5, 1.15), (10, 0.3), (20, 0.3)])
def test_the_layer_and_all_its_gradients_are_those_of_a_dense_mixture_by_the_tempered_noisy_gate(
    step, temperature
):
    options = ("model.activation=relu", "moe.router.jitter=0", "moe.router.threshold=0.03")
    layer = moe_layer(tiny_recipe(*SOUND, *options))
    x, at = normal(32, 32, seed=7).requires_grad_(), context(2, 16, True, step)
    noisy = x @ layer.router.weight + gumbel(8, layer.router.site, at)
    # After the switch the largest gate alone: a threshold for each token, just below it.
    largest = torch.softmax(noisy / temperature, 1).amax(1, keepdim=True).detach()
    threshold = largest * (1 - 1e-5) if step == 20 else 0.03
    upstream, leaves = normal(32, 32, seed=8), (x, *layer.parameters())
    y, stats = layer(x, at)
    expected = mixture(layer, x, at, temperature, threshold)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    ours, oracle = (torch.autograd.grad(output, leaves, upstream) for output in (y, expected))
    for gradient, true_gradient in zip(ours, oracle, strict=True):
        torch.testing.assert_close(gradient, true_gradient, rtol=1e-3, atol=1e-4)
    assert oracle[1].abs().max() > 0.1, "the gradient passes the gate"
    num_edges = int(stats.load.sum())
    assert num_edges == 32 if step == 20 else 32 < num_edges < 256


def test_the_gradient_of_a_gate_is_that_of_a_softmax_over_its_temperature():
    """dL/dz_i = g_i (u_i - sum_j u_j g_j) / tau for L = sum_j u_j g_j over the experts that are active."""
    made, upstream = router(hard_step=None), normal(1, EXPERTS)[0]
    for step, temperature in ((0, 2.0), (10, 0.3)):
        routing = routed(made, 1, step=step)
        loss = (upstream[routing.expert_ids] * routing.weights).sum()
        (gradient,) = torch.autograd.grad(loss, made.weight)
        noise = gumbel(EXPERTS, "layers.0.router", context(1, 1, True, step))[0]
        gates = torch.softmax((LOGITS + noise) / temperature, 0)
        of_active = torch.where(gates > 0.001, upstream, 0.0)
        expected = gates * (of_active - (of_active * gates).sum()) / temperature
        torch.testing.assert_close(gradient[0], expected)


def test_a_hard_gate_keeps_the_weight_and_the_gradient_of_the_soft_one():
    hard, soft = router(hard_step=0), router(hard_step=None)
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


def test_validation_of_the_softmax_gate_is_switch_in_every_phase():
    made, switch, x = router(gate="softmax"), switch_router(), normal(30, 1)
    for step in (0, 50):
        ours, theirs = (each(x, context(1, 30, False, step)) for each in (made, switch))
        assert torch.equal(ours.expert_ids, theirs.expert_ids)
        torch.testing.assert_close(ours.weights, theirs.weights)
        torch.testing.assert_close(ours.losses["balance"], theirs.losses["balance"])


def test_validation_chooses_as_switch_and_weighs_by_the_gate_of_that_step_without_noise():
    made, switch, x = router(), switch_router(), normal(30, 1)
    for step, temperature in ((0, 2.0), (5, 1.15), (10, 0.3), (50, 0.3)):
        ours, theirs = (each(x, context(1, 30, False, step)) for each in (made, switch))
        assert torch.equal(ours.expert_ids, theirs.expert_ids)
        assert ours.num_choices == 1
        torch.testing.assert_close(ours.weights, torch.softmax(x * LOGITS / temperature, 1).amax(1))


def switch_router() -> TopKRouter:
    """Switch with the same logits."""
    made = TopKRouter(
        SwitchRouterConfig(jitter=0.0), d_model=1, num_experts=EXPERTS, group=1, site="layers.0.router"
    )
    made.weight.data.copy_(LOGITS.unsqueeze(0))
    return made


def test_a_recipe_that_names_no_gate_has_the_papers_and_one_that_names_another_keeps_it():
    assert tiny_recipe(*SOUND).moe.router.gate == "gumbel"
    assert tiny_recipe(*SOUND, "moe.router.gate=softmax").moe.router.gate == "softmax"


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
    made, plain = router(diversify_steps=3), router()
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
    routing = routed(router(), 20)
    slots = routing.token_ids * routing.num_choices + routing.choices
    assert torch.equal(slots, slots.sort().values)
    first = routing.choices[1:] == 0
    assert (routing.weights[1:][~first] <= routing.weights[:-1][~first]).all()


def test_the_balance_of_active_experts_is_that_of_switch_for_one_and_the_number_of_experts_for_all():
    probabilities = torch.softmax(normal(12, EXPERTS), 1)
    chosen = probabilities.argmax(1, keepdim=True)
    one_hot = torch.zeros(12, EXPERTS, dtype=torch.bool).scatter(1, chosen, True)
    sets = TokenSets(6)
    ours = active_balance_loss(probabilities, one_hot, sets).value
    torch.testing.assert_close(ours, balance_loss(probabilities, chosen, sets).value)
    assert active_balance_loss(probabilities, torch.ones_like(one_hot), sets).value.item() == pytest.approx(
        EXPERTS
    )


def test_noise_has_the_moments_of_its_distribution():
    draws = gumbel(8, "here", context(4, 5000, True))
    assert draws.isfinite().all()
    assert draws.mean().item() == pytest.approx(0.5772, abs=0.015)
    assert draws.var().item() == pytest.approx(math.pi**2 / 6, abs=0.04)
    draws = normal_noise(8, "here", context(4, 5000, True))
    assert draws.isfinite().all()
    assert draws.mean().item() == pytest.approx(0, abs=0.012)
    assert draws.var().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "moe.capacity_factor=1.25",
            "moe.capacity_factor=1.25: does not apply: moe.router.kind=dense_",
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
    one, gate, unbalanced = notes(tiny_recipe(*phase, decay, hard))
    assert "nothing keeps the loads of the experts even" in unbalanced
    assert "until step 5 all tokens go to expert 0" in one
    assert "then all 8 become copies of it, each with 25% of its weights zeroed" in one
    assert "from step 5 until step 20 a token has up to 8" in gate


def test_the_temperature_of_the_update_is_shown_once_there_is_a_gate():
    made = router(
        diversify_steps=4, temperature_start=2.0, temperature_end=1.0, decay_steps=4, decay="linear"
    )
    assert math.isnan(made.gauges(3)["temperature"])
    assert [made.gauges(step)["temperature"] for step in (4, 6, 8, 20)] == [2.0, 1.5, 1.0, 1.0]
