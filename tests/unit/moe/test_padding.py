"""Padding is not routed, takes no slot and has no part in losses and statistics, whatever the router."""

import pytest
import torch
from tiny_model import context, moe_layer, normal, tiny_recipe, vocabulary, with_padding

from moe_train.config.check import problems
from moe_train.config.registry import REGISTRY
from moe_train.moe.losses import TokenSets, balance_loss, z_loss
from moe_train.moe.routing import TableRouter
from moe_train.random import generator_for

SEQUENCES, LENGTH, WIDTH = 3, 8, 32
REAL = torch.arange(LENGTH) < torch.tensor([[5], [8], [2]])
ROUTERS = sorted(REGISTRY["moe.router"])
UNLIMITED = ("moe.capacity_factor=null", "moe.eval_capacity_factor=null")


def layer_of(kind: str, *overrides: str):
    recipe = tiny_recipe(f"moe.router.kind={kind}", *overrides)
    layer = moe_layer(recipe)
    if isinstance(layer.router, TableRouter):
        layer.router.table = layer.router.make_table(vocabulary(recipe), generator_for(0, "table"))
    return layer


def padded(training: bool):
    return with_padding(context(SEQUENCES, LENGTH, training), REAL)


def limits(kind: str) -> tuple[str, ...]:
    """A capacity limit in validation, for the kinds that can have one."""
    limited = ("moe.eval_capacity_factor=1.0",)
    refused = [problem.key for problem in problems(tiny_recipe(f"moe.router.kind={kind}", *limited))]
    return UNLIMITED if "moe.eval_capacity_factor" in refused else limited


def parameter_gradients(layer, y, stats) -> dict[str, torch.Tensor]:
    """Of a loss of real tokens' outputs, and of all auxiliary losses."""
    layer.zero_grad()
    (y[REAL.flatten()].square().sum() + sum(stats.losses.values())).backward()
    return {name: weight.grad.clone() for name, weight in layer.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ROUTERS)
def test_what_stands_in_padding_changes_nothing(kind, training):
    layer = layer_of(kind, *limits(kind))
    x = normal(SEQUENCES * LENGTH, WIDTH, seed=3)
    other = torch.where(REAL.view(-1, 1), x, 9 * normal(SEQUENCES * LENGTH, WIDTH, seed=4))
    (y, stats), (again, others) = (layer(rows, padded(training)) for rows in (x, other))
    real = REAL.flatten()
    gradients = parameter_gradients(layer, y, stats)
    for name, gradient in parameter_gradients(layer, again, others).items():
        torch.testing.assert_close(gradient, gradients[name])
    torch.testing.assert_close(again[real], y[real])
    assert torch.equal(others.load, stats.load)
    assert int(others.counts["dropped"]) == int(stats.counts["dropped"])
    torch.testing.assert_close(others.counts["router_entropy"], stats.counts["router_entropy"])
    torch.testing.assert_close(
        others.counts["router_top_probability"], stats.counts["router_top_probability"]
    )
    for name, loss in stats.losses.items():
        torch.testing.assert_close(others.losses[name], loss)


@pytest.mark.parametrize("kind", ROUTERS)
def test_padding_gets_no_gradient(kind):
    layer = layer_of(kind, *UNLIMITED)
    x = normal(SEQUENCES * LENGTH, WIDTH, seed=3).requires_grad_()
    y, stats = layer(x, padded(training=True))
    real = REAL.flatten()
    (y[real].square().sum() + sum(stats.losses.values())).backward()
    assert not x.grad[~real].any()
    assert x.grad[real].any()


@pytest.mark.parametrize("kind", ROUTERS)
def test_without_a_limit_a_padded_sequence_is_routed_like_one_that_ends_there(kind):
    layer = layer_of(kind, *UNLIMITED)
    x = normal(SEQUENCES * LENGTH, WIDTH, seed=3)
    y, _ = layer(x, padded(training=True))
    alone, stats = layer(x[:5], context(1, 5, training=True))
    torch.testing.assert_close(y[:5], alone)
    one = with_padding(context(1, LENGTH, training=True), REAL[:1])
    _, of_padded = layer(x[:LENGTH], one)
    assert torch.equal(of_padded.load, stats.load)
    torch.testing.assert_close(of_padded.counts["router_entropy"], stats.counts["router_entropy"])
    torch.testing.assert_close(
        of_padded.counts["router_top_probability"], stats.counts["router_top_probability"]
    )
    for name, loss in stats.losses.items():
        torch.testing.assert_close(of_padded.losses[name], loss)


def test_padding_takes_no_slot():
    """Slots are counted over all places of a group, padding included, and all go to real tokens."""
    layer = layer_of("switch", "moe.num_experts=1", "moe.capacity_factor=0.5", "moe.router.jitter=0")
    x = normal(LENGTH, WIDTH, seed=3)
    _, full = layer(x, context(1, LENGTH, training=True))
    _, short = layer(x, with_padding(context(1, LENGTH, training=True), REAL[:1]))
    assert (int(full.load), int(full.counts["dropped"])) == (8, 4)
    assert (int(short.load), int(short.counts["dropped"])) == (5, 1)


@pytest.mark.parametrize(("kind", "loads"), [("base", [2, 2, 1]), ("expert_choice", [3, 3, 3])])
def test_real_tokens_alone_are_shared_out(kind, loads):
    """Of 8 places 5 are real: shares of 5/3, rounded up, and of 2 * 5/3, rounded down."""
    layer = layer_of(kind, "moe.num_experts=3", *UNLIMITED)
    x = normal(LENGTH, WIDTH, seed=3)
    _, stats = layer(x, with_padding(context(1, LENGTH, training=True), REAL[:1]))
    assert sorted(stats.load.tolist(), reverse=True) == loads


@pytest.mark.parametrize("kind", ["base", "sinkhorn", "expert_choice", "noisy_top_k", "batch_priority"])
def test_a_sequence_of_padding_alone_is_no_trouble(kind):
    layer = layer_of(kind, *UNLIMITED)
    x = normal(2 * LENGTH, WIDTH, seed=3).requires_grad_()
    none = with_padding(context(2, LENGTH, training=True), torch.tensor([[True], [False]]).expand(2, LENGTH))
    y, stats = layer(x, none)
    (y.square().sum() + sum(stats.losses.values())).backward()
    alone, _ = layer(x[:LENGTH], context(1, LENGTH, training=True))
    torch.testing.assert_close(y[:LENGTH], alone)
    assert not y[LENGTH:].any()
    assert x.grad.isfinite().all()


def test_losses_of_groups_of_padding_alone_are_zero():
    logits = normal(8, 4)
    none = torch.zeros(8, dtype=torch.bool)
    assert (
        float(balance_loss(logits.softmax(1), logits.argmax(1, keepdim=True), TokenSets(4, none)).value) == 0
    )
    assert float(z_loss(logits, TokenSets(4, none))) == 0
    all_real = ~none
    for mine, plain in (
        (z_loss(logits, TokenSets(4, all_real)), z_loss(logits)),
        (
            balance_loss(logits.softmax(1), logits.argmax(1, keepdim=True), TokenSets(4, all_real)).value,
            balance_loss(logits.softmax(1), logits.argmax(1, keepdim=True), TokenSets(4)).value,
        ),
    ):
        torch.testing.assert_close(mine, plain)


def recipe_of_sentences(kind: str):
    return tiny_recipe(
        f"moe.router.kind={kind}",
        "model.architecture=encoder_decoder",
        "moe.stacks=encoder",
        "objective.kind=consistency" if kind == "thor" else "objective.kind=translation",
        "data.corpus.kind=parallel_files",
        "data.corpus.path=.",
        "steps=1000",
        *UNLIMITED,
    )


@pytest.mark.parametrize("kind", sorted(set(ROUTERS) - {"reinforce"}))
def test_sentences_are_for_every_router(kind):
    assert [str(problem) for problem in problems(recipe_of_sentences(kind))] == []


def test_a_policy_has_no_reward_for_source_tokens():
    (problem,) = problems(recipe_of_sentences("reinforce"))
    assert "moe.router.kind=reinforce: learns from the loss of each token's prediction" in str(problem)
