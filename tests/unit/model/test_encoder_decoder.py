"""Encoders and encoder-decoders: who sees what, padding that changes nothing, and the pieces of both stacks."""

from dataclasses import replace

import pytest
import torch
from tiny_model import context, global_batch, tiny_recipe, tiny_transformer, with_padding

SPANS = ("model.architecture=encoder_decoder", "objective.kind=span_corruption", "objective.sentinels=8")
MASKED = ("model.architecture=encoder", "objective.kind=masked")
POSITIONS = ["rotary", "learned", "relative", "transformer_xl"]
DROPLESS = ("moe.capacity_factor=null", "moe.eval_capacity_factor=null")


def run(model, batch, source=None, **about):
    """The output for the batch with its source, or another one."""
    source = batch.source if source is None else source
    return model(
        batch.tokens,
        context(*batch.tokens.shape, **about),
        source,
        context(*source.shape, **about),
    )


@pytest.mark.parametrize("positions", POSITIONS)
@torch.no_grad()
def test_a_decoder_sees_the_whole_source_and_no_later_token_of_its_own(positions):
    recipe = tiny_recipe(*SPANS, f"model.positions={positions}", "moe.eval_capacity_factor=1.0")
    model, batch = tiny_transformer(recipe), global_batch(recipe, 0)
    output = run(model, batch)
    before = output.logits.values
    assert any(int(layer.counts["dropped"]) > 0 for layer in output.moe[2:])
    changed = batch.tokens.clone()
    changed[:, 2] = (changed[:, 2] + 7) % 300
    after = run(model, replace(batch, tokens=changed)).logits.values
    torch.testing.assert_close(after[:, :2], before[:, :2])
    assert not torch.allclose(after[:, 2], before[:, 2])
    source = batch.source.clone()
    source[:, -2] = (source[:, -2] + 7) % 300
    after = run(model, batch, source).logits.values
    assert bool(((after - before).abs().amax(2) > 1e-6).all()), "every position reads the last of the source"


@pytest.mark.parametrize("positions", POSITIONS)
@torch.no_grad()
def test_every_position_of_an_encoder_sees_all(positions):
    recipe = tiny_recipe(*MASKED, f"model.positions={positions}")
    model, batch = tiny_transformer(recipe), global_batch(recipe, 0)
    before = model(batch.tokens, context(*batch.tokens.shape)).logits.values
    changed = batch.tokens.clone()
    changed[:, 15] = (changed[:, 15] + 7) % 300
    after = model(changed, context(*changed.shape)).logits.values
    assert bool(((after - before).abs().amax(2) > 1e-6).all())


@pytest.mark.parametrize("positions", POSITIONS)
@torch.no_grad()
def test_padding_of_a_source_changes_nothing(positions):
    recipe = tiny_recipe(*SPANS, *DROPLESS, f"model.positions={positions}")
    model, batch = tiny_transformer(recipe), global_batch(recipe, 0)
    short = batch.source[:, :10]
    is_real = torch.arange(batch.source.shape[1]).expand_as(batch.source) < 10
    expected = run(model, batch, short).logits.values
    shape = batch.source.shape
    for filler in (0, 250):
        padded = batch.source.masked_fill(~is_real, filler)
        of_source = with_padding(context(*shape), is_real)
        logits = model(batch.tokens, context(*batch.tokens.shape), padded, of_source).logits.values
        torch.testing.assert_close(logits, expected)


@torch.no_grad()
def test_a_source_of_padding_alone_gives_no_nan():
    recipe = tiny_recipe(*SPANS, *DROPLESS)
    model, batch = tiny_transformer(recipe), global_batch(recipe, 0)
    of_source = with_padding(context(*batch.source.shape), torch.zeros_like(batch.source, dtype=torch.bool))
    logits = model(batch.tokens, context(*batch.tokens.shape), batch.source, of_source).logits.values
    assert logits.isfinite().all()


@torch.no_grad()
def test_encoding_and_decoding_apart_give_what_the_whole_model_gives():
    recipe = tiny_recipe(*SPANS)
    model, batch = tiny_transformer(recipe), global_batch(recipe, 0)
    whole = run(model, batch)
    encoded = model.encode(batch.source, context(*batch.source.shape))
    decoded = model.decode(batch.tokens, context(*batch.tokens.shape), encoded.states, None)
    assert torch.equal(decoded.logits.values, whole.logits.values)
    assert len(encoded.moe) == len(decoded.moe) == 2
    assert [layer.load.tolist() for layer in whole.moe] == [
        layer.load.tolist() for layer in (*encoded.moe, *decoded.moe)
    ]


@torch.no_grad()
def test_both_stacks_draw_apart_and_a_sequence_is_trained_the_same_whatever_batch_it_is_in():
    recipe = tiny_recipe(*SPANS, "model.dropout=0.2")
    model, batch = tiny_transformer(recipe), global_batch(recipe, 0)
    together = run(model, batch, training=True, step=3).logits.values
    one = batch.sequences(5, 6)
    alone = run(model, one, training=True, step=3, first=5).logits.values
    torch.testing.assert_close(alone[0], together[5])
    sites = {module.site for module in model.modules() if hasattr(module, "site")}
    assert {"encoder.embedding", "decoder.embedding", "encoder.layers.0", "decoder.layers.0"} <= sites


@pytest.mark.parametrize(
    ("stacks", "routed"),
    [
        ("both", ["encoder", "encoder", "decoder", "decoder"]),
        ("encoder", ["encoder"] * 2),
        ("decoder", ["decoder"] * 2),
    ],
)
def test_statistics_come_from_every_moe_layer_the_encoders_first(stacks, routed):
    recipe = tiny_recipe(*SPANS, f"moe.stacks={stacks}")
    model, batch = tiny_transformer(recipe), global_batch(recipe, 0)
    stats = run(model, batch).moe
    names = [name for name, _ in model.named_parameters() if name.endswith("router.weight")]
    assert [name.partition(".")[0] for name in names] == routed
    tokens = {"encoder": batch.source.numel(), "decoder": batch.tokens.numel()}
    assert [int(layer.load.sum()) for layer in stats] == [tokens[stack] for stack in routed]
    assert [int(layer.counts["tokens"]) for layer in stats] == [tokens[stack] for stack in routed]


def test_every_parameter_of_both_stacks_gets_a_gradient():
    recipe = tiny_recipe(
        *SPANS,
        "model.positions=relative",
        "model.num_encoder_layers=3",
        "model.activation=swiglu",
        "model.tied_embeddings=false",
    )
    model, batch = tiny_transformer(recipe), global_batch(recipe, 0)
    output = run(model, batch, training=True)
    (output.logits.values.square().mean() + sum(layer.losses["balance"] for layer in output.moe)).backward()
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.any()] == []
    assert len(model.encoder.layers) == 3
    assert model.encoder.relative_bias.weight is not model.decoder.relative_bias.weight


def test_relative_distances_both_ways_agree_with_hugging_faces_t5():
    from transformers.models.t5.modeling_t5 import T5Attention

    from moe_train.model.attention import bucket_both_ways

    distance = torch.arange(300).unsqueeze(1) - torch.arange(300)
    theirs = T5Attention._relative_position_bucket(
        -distance, bidirectional=True, num_buckets=32, max_distance=128
    )
    assert torch.equal(bucket_both_ways(distance), theirs)
