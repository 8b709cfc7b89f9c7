"""THOR: one expert per layer and pass, drawn for the whole batch."""

import math
from dataclasses import replace

import pytest
import torch
from tiny_model import context, moe_layer, normal, tiny_recipe, tiny_transformer

from moe_train.config.check import problems
from moe_train.config.kinds.router.thor import ThorRouterConfig
from moe_train.moe.routers.thor import ThorRouter
from moe_train.moe.routing import Pass, RouteContext
from moe_train.moe.rows import Rows
from moe_train.random import RandomStream

EXPERTS, LENGTH, SENTENCES = 4, 5, 4050
DROPLESS = ("moe.capacity_factor=null", "moe.eval_capacity_factor=null")
THOR = ("moe.router.kind=thor", "objective.kind=consistency", *DROPLESS)
ENCODER_DECODER = (
    "model.architecture=encoder_decoder",
    "objective.kind=translation",
    "data.corpus.kind=parallel_files",
    "data.corpus.path=x",
    "model.num_layers=2",
    "moe.every=1",
    "moe.num_experts=3",
)


def router(site: str = "layers.0.router", **options) -> ThorRouter:
    return ThorRouter(ThorRouterConfig(**options), d_model=3, num_experts=EXPERTS, group=1, site=site)


def in_pass(number: int, step: int, sequences: int = 2, first: int = 0) -> RouteContext:
    """A context of one of the passes over a batch."""
    ids = torch.arange(first, first + sequences)
    tokens = torch.zeros(sequences, LENGTH, dtype=torch.long)
    return RouteContext(Pass(True, 0.0, RandomStream(0, step, number)), Rows(ids, tokens))


def drawn(number: int = 0, step: int = 0, site: str = "layers.0.router", **place) -> int:
    """The one expert that all tokens of a pass go to."""
    at = in_pass(number, step, **place)
    routing = router(site)(torch.zeros(at.rows.values.numel(), 3), at)
    (expert,) = set(routing.expert_ids.tolist())
    assert routing.weights.tolist() == [1.0] * routing.num_tokens
    return expert


def test_every_expert_is_drawn_equally_often():
    counts = torch.bincount(torch.tensor([drawn(step=step) for step in range(1000)]), minlength=EXPERTS)
    assert (counts - 250).abs().max() < 55  # 4 standard deviations


def test_the_passes_of_an_update_draw_independently():
    pairs = [(drawn(0, step), drawn(1, step)) for step in range(1000)]
    assert 190 < sum(first == second for first, second in pairs) < 310, "they coincide in one of four"
    assert len(set(pairs)) == EXPERTS**2


def test_layers_draw_independently():
    same = sum(drawn(step=step) == drawn(step=step, site="layers.2.router") for step in range(1000))
    assert 190 < same < 310


def test_all_microbatches_and_ranks_of_a_step_see_the_same_draw():
    for step in range(20):
        assert drawn(step=step) == drawn(step=step, sequences=1, first=7)


def test_in_validation_the_ensemble_has_every_expert_and_fixed_has_one():
    x, at = torch.zeros(6 * LENGTH, 3), context(6, LENGTH)
    assert set(router(inference="fixed", fixed_expert=2)(x, at).expert_ids.tolist()) == {2}
    ensemble = router(inference="ensemble")(x, at)
    assert ensemble.num_choices == EXPERTS
    assert ensemble.expert_ids.tolist() == list(range(EXPERTS)) * 6 * LENGTH
    assert set(ensemble.weights.tolist()) == {0.25}


def in_validation(way: str, at: RouteContext, site: str = "layers.0.router") -> torch.Tensor:
    """The expert of every token, a row a sequence."""
    made = router(site, inference=way)
    return made(torch.zeros(at.rows.values.numel(), 3), at).expert_ids.view(at.rows.values.shape)


def test_in_validation_all_tokens_of_a_sequence_have_its_expert_and_each_expert_has_as_many_sequences():
    many = in_validation("sequence", context(4000, LENGTH))
    assert (many == many[:, :1]).all()
    counts = torch.bincount(many[:, 0], minlength=EXPERTS)
    assert (counts - 1000).abs().max() < 110  # 4 standard deviations


def test_in_validation_tokens_can_have_an_expert_each():
    many = in_validation("token", context(200, 20))
    counts = torch.bincount(many.flatten(), minlength=EXPERTS)
    assert (counts - 1000).abs().max() < 110  # 4 standard deviations
    same_as_neighbour = (many[:, 1:] == many[:, :-1]).float().mean()
    assert 0.21 < float(same_as_neighbour) < 0.29


@pytest.mark.parametrize(
    "drawing",
    [THOR, (*THOR, "moe.router.inference=token"), ("moe.router.kind=random", *DROPLESS)],
    ids=["thor-sequence", "thor-token", "random"],
)
def test_in_validation_every_layer_of_a_model_draws_independently(drawing):
    """The first token of each sentence takes one of E^L paths through the model, all equally often."""
    model = tiny_transformer(tiny_recipe(*ENCODER_DECODER, *drawing))
    at, expert_ids = context(SENTENCES, 2), []
    for block in model.blocks:
        block.feedforward.router.register_forward_hook(
            lambda _, __, routing: expert_ids.append(routing.expert_ids[::2])
        )
    with torch.no_grad():
        model(at.rows.values, at, at.rows.values, at)
    assert len(expert_ids) == 4
    paths = sum(of_layer * 3**layer for layer, of_layer in enumerate(expert_ids))
    counts, expected = torch.bincount(paths, minlength=3**4), SENTENCES / 3**4
    assert len(counts) == 3**4
    assert counts.min() > 0
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 80 + 4 * math.sqrt(2 * 80)  # 80 degrees of freedom, 4 standard deviations


@pytest.mark.parametrize("way", ["sequence", "token"])
def test_a_token_keeps_its_expert_wherever_its_sequence_is_and_however_long_it_has_become(way):
    many = in_validation(way, context(6, 20, step=3, seed=5))
    for length in (1, 7, 20):
        assert torch.equal(in_validation(way, context(1, length, first=4))[0], many[4, :length])


def test_in_validation_all_can_have_one_expert_of_each_layer_as_in_training():
    drawn = [in_validation("batch", context(3, 4), f"layers.{layer}.router") for layer in range(400)]
    assert all((of_layer == of_layer[0, 0]).all() for of_layer in drawn)
    counts = torch.bincount(torch.stack([of_layer[0, 0] for of_layer in drawn]), minlength=EXPERTS)
    assert (counts - 100).abs().max() < 35  # 4 standard deviations
    assert torch.equal(
        in_validation("batch", context(1, 9, step=7, first=2))[0, :1],
        in_validation("batch", context(3, 4))[0, :1],
    )


def test_identical_experts_make_all_ways_of_inference_equal():
    outputs = [with_inference(way)[1] for way in ("sequence", "token", "batch", "ensemble", "fixed")]
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0])


def with_inference(way: str, same: bool = True):
    """A layer of 8 experts, with the same weights if `same`, and its output in validation."""
    layer = moe_layer(tiny_recipe(*THOR, f"moe.router.inference={way}"))
    with torch.no_grad():
        for weight in layer.experts.parameters():
            weight.abs_()
            if same:
                weight.copy_(weight[:1].expand_as(weight))
    x = normal(3 * LENGTH, 32).abs()
    return layer, layer(x, context(3, LENGTH))[0]


def test_the_ensemble_of_experts_that_are_linear_is_the_mean_of_their_products():
    layer, y = with_inference("ensemble", same=False)  # positive rows and weights: relu does nothing
    x = normal(3 * LENGTH, 32).abs()
    mean = torch.einsum("edf,efo->do", layer.experts.w_in, layer.experts.w_out) / 8
    torch.testing.assert_close(y, x @ mean, rtol=1e-4, atol=1e-4)


def test_a_router_without_weights_costs_nothing_and_needs_the_consistency_objective():
    recipe = tiny_recipe(*THOR)
    assert problems(recipe) == []
    assert recipe.moe.router.num_parameters(32, 8) == sum(p.numel() for p in router().parameters()) == 0
    recipe.objective = replace(recipe.objective, kind="language")
    (problem,) = problems(recipe)
    assert "draws experts at random" in str(problem)
    assert "set objective.kind=consistency" in str(problem)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (
            ("moe.num_experts=1",),
            "moe.expert_dropout=0 and moe.router.kind=thor with moe.num_experts=1 nothing is",
        ),
        (("moe.every=0",), "with model.dropout=0, moe.every=0 nothing is random"),
        (("moe.every=0", "moe.expert_dropout=0.1"), "with model.dropout=0, moe.every=0 nothing is random"),
        (("moe.router.kind=hash",), "moe.router.kind=hash with moe.num_experts=8 nothing is random"),
        (
            ("moe.router.kind=switch", "moe.router.jitter=0"),
            "moe.router.kind=switch with moe.num_experts=8 nothing",
        ),
    ],
)
def test_two_passes_that_cannot_differ_are_refused(overrides, reason):
    still = (*THOR, "model.dropout=0", *overrides)
    (problem,) = problems(tiny_recipe(*still))
    assert str(problem).startswith(
        "objective.kind=consistency: needs two passes over each batch that differ, but with"
    )
    assert reason in str(problem)
    assert "set model.dropout=0.1, or moe.router.kind=thor with several experts" in str(problem)
    assert problems(tiny_recipe(*still, "model.dropout=0.1")) == []


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("moe.num_experts=1", "moe.expert_dropout=0.1"),
        ("moe.router.kind=switch", "moe.router.jitter=0.01"),
        ("moe.router.kind=switch", "moe.router.jitter=0", "moe.router.policy=sampling"),
    ],
)
def test_one_thing_that_is_drawn_is_enough_for_two_passes(overrides):
    assert problems(tiny_recipe(*THOR, "model.dropout=0", *overrides)) == []


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("moe.capacity_factor=1.25", "moe.capacity_factor=1.25: does not apply"),
        ("moe.router.fixed_expert=8", "moe.router.fixed_expert=8: must be an expert, from 0 to 7"),
        ("objective.alpha=-1", "objective.alpha=-1.0: must be at least 0"),
        ("objective.label_smoothing=1", "objective.label_smoothing=1.0: must be in [0, 1)"),
    ],
)
def test_what_cannot_be_is_refused(override, sentence):
    (problem,) = problems(tiny_recipe(*THOR, override))
    assert sentence in str(problem)
