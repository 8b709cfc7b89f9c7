"""Attention and its positions: causal, and relative where they claim to be."""

import copy
import math

import pytest
import torch
from tiny_model import normal, tiny_recipe
from torch import nn

from moe_train.config.resolve import spec_of
from moe_train.model.attention import Attention, RelativeBias, bucket


def test_attention_equals_the_formula_written_out():
    attention = Attention(spec_of(tiny_recipe("model.positions=learned")))
    x = normal(2, 5, 32)
    parts = (attention.query(x), attention.key(x), attention.value(x))
    query, key, value = (part.view(2, 5, 2, 16).permute(0, 2, 1, 3) for part in parts)
    scores = query @ key.transpose(-1, -2) / math.sqrt(16)
    scores = scores.masked_fill(torch.ones(5, 5, dtype=torch.bool).triu(1), -math.inf)
    expected = attention.output((scores.softmax(-1) @ value).permute(0, 2, 1, 3).reshape(2, 5, 32))
    torch.testing.assert_close(attention(x, None), expected)


def half_of(attention: Attention, half: int) -> Attention:
    """The attention with one of its two heads, as a rank holds it that shares heads with another."""
    part = copy.deepcopy(attention)
    for projection in (part.query, part.key, part.value):
        projection.weight = nn.Parameter(projection.weight.chunk(2)[half])
    part.output.weight = nn.Parameter(part.output.weight.chunk(2, dim=1)[half])
    return part


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_parts_of_the_heads_sum_to_all_of_them(positions):
    attention, x = Attention(spec_of(tiny_recipe(f"model.positions={positions}"))), normal(2, 5, 32)
    parts = [half_of(attention, half)(x, None) for half in (0, 1)]
    torch.testing.assert_close(parts[0] + parts[1], attention(x, None))


@pytest.mark.parametrize("positions", ["rotary", "learned", "transformer_xl"])
def test_projections_that_are_no_whole_heads_fail(positions):
    """Each of two heads is 16 wide; 24 of 32 columns are not two narrower heads."""
    attention = Attention(spec_of(tiny_recipe(f"model.positions={positions}")))
    for projection in (attention.query, attention.key, attention.value):
        projection.weight = nn.Parameter(projection.weight[:24])
    with pytest.raises(RuntimeError, match="don't multiply up"):
        attention(normal(2, 5, 32), None)


def test_a_part_of_the_heads_with_the_bias_or_the_output_of_all_fails():
    attention, x = Attention(spec_of(tiny_recipe("model.positions=relative"))), normal(2, 5, 32)
    part = half_of(attention, 0)
    part.output = attention.output
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        part(x, None)
    three_heads = torch.zeros(1, 3, 5, 5)
    with pytest.raises(RuntimeError):
        attention(x, three_heads)


@pytest.mark.parametrize(
    ("distance", "number"),
    # from 16 on: 16 + floor(16 * ln(d / 16) / ln 8)
    [
        (-3, 0),
        (0, 0),
        (1, 1),
        (15, 15),
        (16, 16),
        (17, 16),
        (20, 17),
        (33, 21),
        (65, 26),
        (127, 31),
        (128, 31),
        (9999, 31),
    ],
)
def test_buckets_are_exact_nearby_and_logarithmic_further_away(distance, number):
    assert bucket(torch.tensor([[distance]])).item() == number


def test_buckets_agree_with_hugging_faces_t5():
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = torch.arange(300).unsqueeze(1) - torch.arange(300)
    theirs = T5Attention._relative_position_bucket(
        -distance, bidirectional=False, num_buckets=32, max_distance=128
    )
    assert torch.equal(bucket(distance), theirs)


def test_relative_bias_looks_up_the_bucket_and_hides_the_future():
    table = RelativeBias(2)
    table.weight.data.copy_(torch.arange(64.0).view(32, 2))
    bias = table(3)
    hidden = -math.inf
    assert bias[0].tolist() == [[0.0, hidden, hidden], [2.0, 0.0, hidden], [4.0, 2.0, 0.0]]
    assert bias[1].tolist() == [[1.0, hidden, hidden], [3.0, 1.0, hidden], [5.0, 3.0, 1.0]]
