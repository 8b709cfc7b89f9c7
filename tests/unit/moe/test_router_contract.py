"""What every router of the registry must keep to (docs/adding-a-router.md); a new one is tested by its line there."""

import math
from dataclasses import fields

import pytest
import torch
from tiny_model import TOKENS, context, normal, vocabulary_of

from moe_train.config.kinds.router.router import GateConfig
from moe_train.config.registry import REGISTRY, build
from moe_train.config.schema import Recipe
from moe_train.moe.routing import Routing, TableRouter
from moe_train.random import generator_for

SEQUENCES, LENGTH, WIDTH, EXPERTS = (
    3,
    7,
    12,
    8,
)  # prototypes divide the experts, and dselect_k wants a power of two
# Those of layers without edges are tested with their layers: test_layer_contract.py.
ROUTERS = sorted(name for name, kind in REGISTRY["moe.router"].items() if kind.layer is None)


WITH_LOGITS = [name for name in ROUTERS if issubclass(REGISTRY["moe.router"][name].config, GateConfig)]
WITH_BALANCE = ["noisy_top_k", "hierarchical_top_k", "batch_priority", "deepseek", "dselect_k"]
"""Kinds that have other losses of their own, and this one to be seen."""


def router(kind: str, **options):
    config = REGISTRY["moe.router"][kind].config(**options)
    made = build("moe.router", config, d_model=WIDTH, num_experts=EXPERTS, group=1, site="layers.0.router")
    for index, parameter in enumerate(made.parameters()):
        parameter.data.copy_(normal(*parameter.shape, seed=index))
    if isinstance(made, TableRouter):
        made.table = made.make_table(vocabulary_of(TOKENS), generator_for(0, "table"))
    return made


def tokens() -> torch.Tensor:
    return normal(SEQUENCES * LENGTH, WIDTH, seed=50)


def assert_same_edges(one: Routing, other: Routing) -> None:
    for field in ("token_ids", "expert_ids", "choices", "weights"):
        torch.testing.assert_close(getattr(one, field), getattr(other, field))


@pytest.mark.parametrize("kind", ROUTERS)
@pytest.mark.parametrize("training", [True, False])
def test_edges_are_within_their_bounds_and_no_two_of_a_token_share_a_choice(kind, training):
    routing = router(kind)(tokens(), context(SEQUENCES, LENGTH, training))
    assert (routing.num_tokens, routing.num_experts) == (SEQUENCES * LENGTH, EXPERTS)
    for ids, bound in (
        (routing.token_ids, routing.num_tokens),
        (routing.expert_ids, routing.num_experts),
        (routing.choices, routing.num_choices),
    ):
        assert ids.dtype == torch.int64
        assert 0 <= int(ids.min()) <= int(ids.max()) < bound
    slots = routing.token_ids * routing.num_choices + routing.choices
    assert len(slots.unique()) == len(slots)
    edges = routing.token_ids * routing.num_experts + routing.expert_ids
    assert len(edges.unique()) == len(edges), "a token goes to an expert once"


@pytest.mark.parametrize("kind", ROUTERS)
def test_weights_and_losses_are_fp32_whatever_comes_in(kind):
    routing = router(kind)(tokens().bfloat16(), context(SEQUENCES, LENGTH, training=True))
    assert routing.losses.keys() == routing.coefficients.keys()
    for values in (routing.weights, *routing.losses.values()):
        assert values.dtype == torch.float32
        assert values.isfinite().all()
    assert all(loss.ndim == 0 for loss in routing.losses.values())
    if routing.figures is not None:
        assert 0 <= float(routing.figures.entropy) <= routing.num_tokens * math.log(EXPERTS) * 1.001
        assert not any(figure.requires_grad for figure in routing.figures)
        assert 1 <= float(routing.figures.top_probability) * EXPERTS / routing.num_tokens <= EXPERTS


@pytest.mark.parametrize("kind", ROUTERS)
def test_nothing_is_random_in_validation_and_draws_repeat_in_training(kind):
    made, x = router(kind), tokens()
    validation = made(x, context(SEQUENCES, LENGTH, training=False))
    step = 0 if REGISTRY["moe.router"][kind].config.validation_follows_step else 9
    assert_same_edges(validation, made(x, context(SEQUENCES, LENGTH, training=False, step=step, seed=4)))
    before = torch.get_rng_state()
    first = made(x, context(SEQUENCES, LENGTH, training=True, step=3))
    assert_same_edges(first, made(x, context(SEQUENCES, LENGTH, training=True, step=3)))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("kind", ROUTERS)
@pytest.mark.parametrize("training", [True, False])
def test_a_sequence_is_routed_the_same_wherever_it_is(kind, training):
    made, x = router(kind), tokens()
    together = made(x, context(SEQUENCES, LENGTH, training))
    for sequence in range(SEQUENCES):
        start = sequence * LENGTH
        alone = made(x[start : start + LENGTH], context(1, LENGTH, training, first=sequence))
        mine = together.keep(together.token_ids // LENGTH == sequence)
        torch.testing.assert_close(alone.token_ids + start, mine.token_ids)
        torch.testing.assert_close(alone.expert_ids, mine.expert_ids)
        torch.testing.assert_close(alone.weights, mine.weights)


@pytest.mark.parametrize("kind", WITH_LOGITS)
def test_whatever_has_logits_has_their_z_loss(kind):
    made, x = router(kind, z_coefficient=0.5), tokens()
    here = context(SEQUENCES, LENGTH)
    routing, softmaxes = made(x, here), made.softmaxes(made.logits(x, here))
    expected = sum(logits.logsumexp(1).square().mean() for logits in softmaxes)
    torch.testing.assert_close(routing.losses["z"], expected)
    torch.testing.assert_close(routing.figures.z / len(x), expected)
    squares = torch.stack([logits.var(1, unbiased=False).mean() for logits in softmaxes]).mean()
    torch.testing.assert_close(routing.figures.logit_square / len(x), squares)
    assert routing.coefficients["z"] == 0.5
    parameters = list(made.parameters())
    gradients = torch.autograd.grad(routing.losses["z"], parameters, retain_graph=True, allow_unused=True)
    wanted = torch.autograd.grad(expected, parameters, allow_unused=True)
    assert any(gradient is not None for gradient in gradients)
    torch.testing.assert_close(gradients, wanted)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", WITH_LOGITS)
def test_entropy_and_top_probability_are_those_of_the_softmax_over_all_experts_without_noise(kind, training):
    made, x, here = router(kind), 3 * tokens(), context(SEQUENCES, LENGTH, training)
    routing, logits = made(x, here), made.expert_logits(made.logits(x, here)).double()
    distribution = torch.distributions.Categorical(logits=logits)
    assert logits.shape == (len(x), EXPERTS)
    torch.testing.assert_close(
        routing.figures.entropy.double(), distribution.entropy().sum(), rtol=1e-5, atol=1e-5
    )
    top = distribution.probs.amax(1).sum()
    torch.testing.assert_close(routing.figures.top_probability.double(), top, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", WITH_LOGITS)
def test_the_logits_are_fp32_and_are_what_the_router_goes_by(kind, monkeypatch):
    made, x, here = router(kind), tokens().bfloat16(), context(SEQUENCES, LENGTH)
    logits = made.logits(x, here)
    assert logits.dtype == torch.float32
    other = logits.flip(1)
    monkeypatch.setattr(made, "logits", lambda *_: other)
    changed = made(x, here)
    monkeypatch.undo()
    assert not torch.equal(changed.expert_ids, made(x, here).expert_ids)
    torch.testing.assert_close(changed.losses["z"], made_z(made, other))


def made_z(made, logits: torch.Tensor) -> torch.Tensor:
    """The z-loss of these logits."""
    return torch.stack([each.logsumexp(1).square().mean() for each in made.softmaxes(logits)]).sum()


def test_gates_that_are_a_matrix_product_say_so():
    """The logits of shipped kinds, written out: W x, and for two levels that of both."""
    x, here = tokens(), context(SEQUENCES, LENGTH)
    for kind in sorted(set(REGISTRY["moe.router"]) & set(WITH_LOGITS)):
        made = router(kind)
        weights = [made.group_weight, made.weight] if kind == "hierarchical_top_k" else [made.weight]
        torch.testing.assert_close(made.logits(x, here), torch.cat([x @ each for each in weights], dim=1))


@pytest.mark.parametrize("kind", WITH_LOGITS)
def test_whatever_has_logits_can_have_its_input_jittered_in_training(kind):
    plain, jittery = router(kind, jitter=0.0), router(kind, jitter=0.5)
    for training in (True, False):
        here = context(SEQUENCES, LENGTH, training)
        one, other = (made(tokens(), here).losses["z"].detach() for made in (plain, jittery))
        assert torch.equal(one, other) != training


@pytest.mark.parametrize("kind", WITH_LOGITS)
def test_jitter_beyond_the_input_itself_is_refused(kind):
    recipe = Recipe()
    recipe.moe.router = REGISTRY["moe.router"][kind].config(jitter=1.0)
    assert "moe.router.jitter" in [problem.key for problem in recipe.moe.router.check(recipe)]


@pytest.mark.parametrize("kind", WITH_BALANCE)
def test_a_balance_loss_without_a_coefficient_is_there_to_be_seen(kind):
    made, unweighted = router(kind, balance_coefficient=0.5), router(kind)
    routing, seen = (each(tokens(), context(SEQUENCES, LENGTH)) for each in (made, unweighted))
    assert (routing.coefficients["balance"], seen.coefficients["balance"]) == (0.5, 0)
    torch.testing.assert_close(seen.losses["balance"], routing.losses["balance"].detach())
    assert routing.losses["balance"].requires_grad
    assert not seen.losses["balance"].requires_grad


# Of 8 experts. deepseek: sigmoids of 0 are not 0, so P = .2; hierarchical_top_k: two groups of two experts.
COLLAPSED = {"noisy_top_k": 4, "batch_priority": 4, "deepseek": 1.6, "hierarchical_top_k": 2}


@pytest.mark.parametrize("kind", COLLAPSED)
def test_the_balance_loss_is_one_where_all_logits_are_equal_and_grows_with_collapse(kind):
    made, x = router(kind), tokens().abs()
    for parameter in made.parameters():
        parameter.data.zero_()
    assert float(made(x, context(SEQUENCES, LENGTH)).losses["balance"]) == pytest.approx(1)
    for name in ("weight", "group_weight"):
        if hasattr(made, name):
            getattr(made, name).data[:, :2] = 5
    collapsed = made(x, context(SEQUENCES, LENGTH)).losses["balance"]
    assert float(collapsed) == pytest.approx(COLLAPSED[kind], rel=0.01)


COEFFICIENTS = [
    (kind, field.name)
    for kind in sorted(REGISTRY["moe.router"])
    for field in fields(REGISTRY["moe.router"][kind].config)
    if field.name.endswith("_coefficient") and (kind, field.name) != ("reinforce", "entropy_coefficient")
]


@pytest.mark.parametrize(("kind", "name"), COEFFICIENTS)
def test_a_loss_that_would_be_made_large_is_refused(kind, name):
    recipe = Recipe()
    recipe.moe.router = REGISTRY["moe.router"][kind].config(**{name: -0.5})
    found = [str(problem) for problem in recipe.moe.router.check(recipe)]
    assert any(
        f"moe.router.{name}=-0.5: must be at least 0: a negative coefficient rewards" in said
        for said in found
    )
