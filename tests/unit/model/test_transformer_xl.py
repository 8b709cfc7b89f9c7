"""Transformer-XL's positions: the equation written out, XLNet's attention as an oracle, and distances alone."""

import math

import pytest
import torch
from tiny_model import context, normal, tiny_recipe, tiny_transformer, with_padding
from torch import Tensor

from moe_train.config.check import problems
from moe_train.config.resolve import spec_of
from moe_train.model.attention import HIDDEN, Attention
from moe_train.model.transformer_xl import shift, sinusoids

XL = "model.positions=transformer_xl"


def attention_of(is_causal: bool, seed: int = 0) -> Attention:
    """Width 10, 3 heads of 4, every parameter drawn, u and v too."""
    spec = spec_of(tiny_recipe(XL, "model.d_model=10", "model.num_heads=3", "model.head_width=4"))
    attention = Attention(spec, is_causal=is_causal)
    for number, parameter in enumerate(attention.parameters()):
        parameter.data.copy_(normal(*parameter.shape, seed=seed + number) / 2)
    return attention


def twin(attention: Attention, x: Tensor) -> Tensor:
    """The paper's equation, one pair of positions after the other."""
    weights = {name: weight.double() for name, weight in attention.named_parameters()}
    heads, (batch, length, width) = attention.query.out_features // attention.head_width, x.shape
    of_head = weights["query.weight"].shape[0] // heads
    u, v = weights["distances.content_bias"], weights["distances.distance_bias"]

    def sinusoid(distance: int) -> Tensor:
        rates = [10_000 ** (-2 * i / width) for i in range(width // 2)]
        return torch.tensor(
            [math.sin(distance * rate) for rate in rates] + [math.cos(distance * rate) for rate in rates],
            dtype=torch.float64,
        )

    rows = []
    for b in range(batch):
        for i in range(length):
            mixed = []
            for head in range(heads):
                own = slice(head * of_head, (head + 1) * of_head)
                query = weights["query.weight"][own] @ x[b, i]
                scores, values = [], []
                for j in range(i + 1 if attention.is_causal else length):
                    key = weights["key.weight"][own] @ x[b, j]
                    by_distance = weights["distances.project.weight"][own] @ sinusoid(i - j)
                    score = (query + u[own]) @ key + (query + v[own]) @ by_distance
                    scores.append(score / math.sqrt(of_head))
                    values.append(weights["value.weight"][own] @ x[b, j])
                mixed.append(torch.stack(scores).softmax(0) @ torch.stack(values))
            rows.append(weights["output.weight"] @ torch.cat(mixed))
    return torch.stack(rows).view(batch, length, width)


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("length", [1, 2, 7])
def test_outputs_and_all_gradients_are_those_of_the_equation(is_causal, length):
    attention, x = attention_of(is_causal), normal(2, length, 10, seed=9).requires_grad_()
    upstream = normal(2, length, 10, seed=10)
    wanted = [x, *attention.parameters()]
    fast, slow = attention(x, None), twin(attention, x.double())
    torch.testing.assert_close(fast.double(), slow, rtol=1e-5, atol=1e-5)
    ours = torch.autograd.grad(fast, wanted, upstream)
    theirs = torch.autograd.grad(slow, wanted, upstream.double())
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)
        if length > 1:
            assert expected.abs().max() > 1e-3


@pytest.mark.parametrize("is_causal", [True, False])
def test_xlnets_attention_gives_the_same(is_causal):
    from transformers.models.xlnet.configuration_xlnet import XLNetConfig
    from transformers.models.xlnet.modeling_xlnet import XLNetModel, XLNetRelativeAttention

    length, heads, of_head = 7, 3, 4
    attention, x = attention_of(is_causal), normal(2, length, 10, seed=9)
    theirs = XLNetRelativeAttention(XLNetConfig(d_model=12, n_head=heads, dropout=0.0)).eval()
    distances = attention.distances
    theirs.r_w_bias.data.copy_(distances.content_bias.view(heads, of_head))
    theirs.r_r_bias.data.copy_(distances.distance_bias.view(heads, of_head))
    rates = 1 / torch.pow(10_000, torch.arange(0, 10, 2.0) / 10)
    encoded = XLNetModel.positional_embedding(torch.arange(length, -length, -1.0), rates)
    query, key, value, by_distance = (
        project(rows).unflatten(-1, (heads, of_head))
        for project, rows in (
            *((project, x.transpose(0, 1)) for project in (attention.query, attention.key, attention.value)),
            (distances.project, encoded.expand(-1, 2, -1)),
        )
    )
    later = torch.ones(length, length).triu(1) if is_causal else torch.zeros(length, length)
    mixed = theirs.rel_attn_core(query, key, value, by_distance, attn_mask=later[:, :, None, None])
    expected = attention.output(mixed.flatten(-2)).transpose(0, 1)
    torch.testing.assert_close(attention(x, None), expected)


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("first", [1, 5])
def test_tokens_at_later_positions_see_each_other_as_before(is_causal, first):
    """What stands before them is hidden, so that all that has changed is where they stand."""
    attention, x = attention_of(is_causal), normal(2, 6, 10, seed=9)
    moved = torch.cat((normal(2, first, 10, seed=11), x), dim=1)
    hidden = torch.zeros(2, 1, 1, first + 6)
    hidden[..., :first] = HIDDEN
    torch.testing.assert_close(attention(moved, hidden)[:, first:], attention(x, None))


@torch.no_grad()
@pytest.mark.parametrize(("positions", "moves"), [("transformer_xl", False), ("learned", True)])
def test_logits_stay_where_all_positions_are_shifted(positions, moves):
    recipe = tiny_recipe(
        *("model.architecture=encoder", "objective.kind=masked", f"model.positions={positions}"),
        *("moe.capacity_factor=null", "moe.eval_capacity_factor=null"),
    )
    model, tokens = tiny_transformer(recipe), torch.arange(20).view(2, 10)
    expected = model(tokens, context(2, 10)).logits.values
    padded = torch.cat((torch.full((2, 5), 7), tokens), dim=1)
    is_real = torch.arange(15).expand(2, 15) >= 5
    logits = model(padded, with_padding(context(2, 15), is_real)).logits.values
    assert torch.allclose(logits[:, 5:], expected, atol=1e-5) is not moves


def test_a_row_is_shifted_to_the_distances_of_its_keys():
    both_ways = torch.tensor([[2.0, 1, 0, -1, -2]] * 3).view(1, 1, 3, 5)  # each column holds its distance
    assert shift(both_ways)[0, 0].tolist() == [[0, -1, -2], [1, 0, -1], [2, 1, 0]]
    causal = shift(both_ways[..., :3])[0, 0]
    assert [causal[i, : i + 1].tolist() for i in range(3)] == [[0], [1, 0], [2, 1, 0]]


def test_sinusoids_by_hand():
    found = sinusoids(torch.tensor([0, 3, -3]), 4)
    high, low = (3.0, 0.03)  # rates 1 and 10000^(-1/2)
    expected = [[math.sin(high), math.sin(low), math.cos(high), math.cos(low)]]
    torch.testing.assert_close(found[:1], torch.tensor([[0.0, 0.0, 1.0, 1.0]]))
    torch.testing.assert_close(found[1:2], torch.tensor(expected))
    torch.testing.assert_close(found[2, :2], -found[1, :2])


def test_every_layer_has_a_matrix_of_its_own_and_biases_that_begin_at_0():
    model = tiny_transformer(tiny_recipe(XL, "model.d_model=64"))
    first, second = (block.attention.distances for block in model.blocks)
    assert not torch.equal(first.project.weight, second.project.weight)
    for distances in (first, second):
        assert not distances.content_bias.any()
        assert not distances.distance_bias.any()
        # std = sqrt(1 / 64), cut at 2 deviations, which leaves 0.88 of it
        assert distances.project.weight.std().item() == pytest.approx(0.88 / 8, rel=0.05)


def test_an_odd_width_is_refused():
    [problem] = problems(tiny_recipe(XL, "model.d_model=33", "model.head_width=16"))
    assert str(problem).startswith("model.d_model=33: must be even with model.positions=transformer_xl")


def test_cross_attention_has_no_distances():
    spans = ("model.architecture=encoder_decoder", "objective.kind=span_corruption", "objective.sentinels=4")
    model = tiny_transformer(tiny_recipe(*spans, XL))
    for block in model.decoder.layers:
        assert block.attention.distances is not None
        assert block.cross_attention.distances is None
