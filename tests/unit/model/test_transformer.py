"""The whole model: causal, and with random draws that belong to sequences, not to batches."""

import pytest
import torch
from tiny_model import context, global_batch, tiny_recipe, tiny_transformer

from moe_train.model.stack import dropout

POSITIONS = ["rotary", "learned", "relative", "transformer_xl"]


def logits_of(model, tokens, **about):
    return model(tokens, context(*tokens.shape, **about)).logits.values


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("training", [False, True])
@torch.no_grad()
def test_the_future_does_not_leak_into_earlier_logits(positions, training):
    """Neither through attention nor through the capacity limit, with jitter in training and without."""
    recipe = tiny_recipe(f"model.positions={positions}", "moe.eval_capacity_factor=1.0")
    model, tokens = tiny_transformer(recipe), global_batch(recipe, 0).tokens
    output = model(tokens, context(*tokens.shape, training=training))
    before = output.logits.values
    assert all(int(layer.counts["dropped"]) > 0 for layer in output.moe)
    for position in (15, 8):
        changed = tokens.clone()
        changed[:, position] = (changed[:, position] + 7) % 300
        after = logits_of(model, changed, training=training)
        torch.testing.assert_close(after[:, :position], before[:, :position])
        assert not torch.allclose(after[:, position], before[:, position])


@torch.no_grad()
def test_second_choices_see_later_first_choices_through_capacity():
    """The price of GShard's order with k > 1: documented in moe/capacity.py, and not paid when dropless."""
    moved = {}
    for factor in ("1.0", "null"):
        recipe = tiny_recipe("moe.router.kind=top_k", f"moe.capacity_factor={factor}", "moe.num_experts=4")
        model, tokens = tiny_transformer(recipe), global_batch(recipe, 0).tokens
        changed = tokens.clone()
        changed[:, 15] = (changed[:, 15] + 7) % 300
        before, after = (logits_of(model, each, training=True)[:, :15] for each in (tokens, changed))
        moved[factor] = float((before - after).abs().max())
    assert moved["1.0"] > 1e-3 > 1e-5 > moved["null"]


@pytest.mark.parametrize("positions", POSITIONS)
@torch.no_grad()
def test_positions_matter(positions):
    recipe = tiny_recipe(f"model.positions={positions}", "moe.every=0")
    model = tiny_transformer(recipe)
    tokens = torch.tensor([[5, 6, 7, 8], [6, 5, 7, 8]])
    logits = logits_of(model, tokens)
    assert not torch.allclose(logits[0, 3], logits[1, 3], atol=1e-4)


@torch.no_grad()
def test_a_sequence_is_trained_the_same_whatever_batch_it_is_in():
    recipe = tiny_recipe("model.dropout=0.2")
    model, tokens = tiny_transformer(recipe), global_batch(recipe, 0).tokens
    together = logits_of(model, tokens, training=True, step=3)
    for number in (0, 5):
        alone = logits_of(model, tokens[number : number + 1], training=True, step=3, first=number)
        torch.testing.assert_close(alone[0], together[number])


def test_dropout_masks_are_functions_of_seed_step_site_and_sequence():
    x = torch.ones(2, 16, 32)

    def mask(site="here", first=0, **about):
        here = context(2, 16, training=True, first=first, **about)
        return dropout(x.flatten(0, 1), 0.5, site, here).view_as(x) > 0

    same = mask()
    assert torch.equal(mask(), same)
    assert torch.equal(mask(first=1)[0], same[1])
    for other in (mask(site="there"), mask(step=1), mask(seed=1), mask(first=2)):
        agreement = (other == same).float().mean().item()
        assert 0.4 < agreement < 0.6
    assert not torch.equal(same[0], same[1])


def test_dropout_keeps_the_mean_and_is_off_in_validation():
    x = torch.ones(8, 64, 64)
    dropped = dropout(x.flatten(0, 1), 0.25, "here", context(8, 64, training=True))
    assert set(dropped.unique().tolist()) == {0.0, 1 / 0.75} or torch.allclose(
        dropped.max(), torch.tensor(4 / 3)
    )
    assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    rows = x.flatten(0, 1)
    assert dropout(rows, 0.25, "here", context(8, 64)) is rows


@torch.no_grad()
def test_validation_passes_are_equal_bit_by_bit():
    recipe = tiny_recipe("model.dropout=0.2")
    model, tokens = tiny_transformer(recipe), global_batch(recipe, 0).tokens
    assert torch.equal(logits_of(model, tokens, step=0), logits_of(model, tokens, step=9))


def test_statistics_come_from_every_moe_layer_lowest_first():
    recipe = tiny_recipe("model.num_layers=4", "moe.every=2")
    model, tokens = tiny_transformer(recipe), global_batch(recipe, 0).tokens
    stats = model(tokens, context(*tokens.shape)).moe
    assert len(stats) == 2
    assert [name for name, _ in model.named_parameters() if name.endswith("router.weight")] == [
        "layers.1.feedforward.router.weight",
        "layers.3.feedforward.router.weight",
    ]


def test_every_parameter_gets_a_gradient():
    recipe = tiny_recipe("model.positions=relative", "model.activation=swiglu", "model.tied_embeddings=false")
    model, tokens = tiny_transformer(recipe), global_batch(recipe, 0).tokens
    output = model(tokens, context(*tokens.shape, training=True))
    (output.logits.values.square().mean() + sum(layer.losses["balance"] for layer in output.moe)).backward()
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.any()] == []
