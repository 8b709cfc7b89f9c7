"""Initial values: Switch's scale, and one value for each weight of the model on every layout."""

import math

import pytest
import torch
from tiny_model import tiny_recipe

from moe_train.config.resolve import spec_of
from moe_train.initial import Constant, Normal, Orthogonal
from moe_train.model.init import initial_of, initial_value, initials
from moe_train.model.transformer import build_on_meta

DROPLESS = ("moe.capacity_factor=null", "moe.eval_capacity_factor=null")
# A normal distribution cut at 2 standard deviations has this share of the standard deviation left.
TRUNCATED = 0.8796


def value(name, global_shape, offsets=None, shape=None, is_expert=False, seed=3, scale=0.1):
    initial = Normal(fan_in=global_shape[1], scale=scale, is_stacked=is_expert)
    return initial_value(seed, name, initial, global_shape, offsets, shape)


@pytest.mark.parametrize(
    ("name", "fan_in"),
    [
        ("layers.0.attention.output.weight", 24),  # nn.Linear: [out, in]
        ("embedding.weight", 32),
        ("layers.1.feedforward.router.weight", 32),  # [width, experts]
        ("layers.1.feedforward.experts.w_in", 32),
        ("layers.1.feedforward.experts.w_out", 40),
        ("relative_bias.weight", 2),  # [buckets, heads]
    ],
)
def test_a_module_knows_the_inputs_of_its_matrices(name, fan_in):
    model = build_on_meta(spec_of(tiny_recipe("model.positions=relative", "model.head_width=12")))
    stacked = ".experts." in name
    assert initials(model, 0.3)[name] == Normal(fan_in=fan_in, scale=0.3, is_stacked=stacked)


@pytest.mark.parametrize(
    ("kind", "own"),
    [
        ("noisy_top_k", {"weight": Constant(0.0), "noise_weight": Constant(0.0)}),
        ("dselect_k", {"weight": Normal(fan_in=32, scale=1e-4)}),
        ("soft", {"weight": Normal(fan_in=32, scale=1.0), "scale": Constant(1.0)}),
        ("smear", {"weight": Normal(fan_in=32, scale=0.3), "gain": Constant(0.01)}),
        ("base", {"weight": Orthogonal(gain=0.1)}),
        ("sinkhorn", {"weight": Normal(fan_in=32, scale=0.3)}),
    ],
)
def test_a_router_says_how_its_weights_begin(kind, own):
    model = build_on_meta(spec_of(tiny_recipe(f"moe.router.kind={kind}", *DROPLESS)))
    prefix, begins = "layers.1.feedforward.router.", initials(model, 0.3)
    assert {name: begins[prefix + name] for name in own} == own


def test_only_the_experts_of_base_begin_as_nothing():
    for kind, expected in (("base", Constant(0.0)), ("sinkhorn", Normal(40, 0.3, is_stacked=True))):
        model = build_on_meta(spec_of(tiny_recipe(f"moe.router.kind={kind}", *DROPLESS)))
        assert initials(model, 0.3)["layers.0.feedforward.experts.w_out"] == expected


def test_a_module_that_does_not_say_how_its_weights_begin_is_refused():
    with pytest.raises(
        TypeError, match=r"Bilinear\.weight: has no initial value; .* a method initial\(name\)"
    ):
        initial_of(torch.nn.Bilinear(2, 2, 2), "weight")


@pytest.mark.parametrize(
    ("name", "shape", "is_expert"),
    [("layers.0.attention.query.weight", (200, 300), False), ("experts.w_in", (2, 100, 300), True)],
)
@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_matrices_have_switchs_deviation_and_are_truncated(name, shape, is_expert, scale):
    fan_in = shape[1]
    drawn, std = value(name, shape, is_expert=is_expert, scale=scale), math.sqrt(scale / fan_in)
    assert drawn.std().item() == pytest.approx(TRUNCATED * std, rel=0.02)
    assert drawn.mean().item() == pytest.approx(0, abs=0.02 * std)
    assert 1.9 * std < drawn.abs().max().item() <= 2 * std * (1 + 1e-6)


def test_norms_start_at_one():
    initial = initial_of(torch.nn.RMSNorm(7), "weight")
    assert initial_value(3, "layers.0.attention_norm.weight", initial, (7,)).tolist() == [1.0] * 7


def test_the_part_of_a_shared_matrix_is_cut_from_the_whole():
    whole = value("layers.0.attention.query.weight", (8, 6))
    assert torch.equal(value("layers.0.attention.query.weight", (8, 6), (4, 0), (2, 6)), whole[4:6])


@pytest.mark.parametrize("held", [1, 2, 4, 8])
def test_an_experts_values_do_not_depend_on_how_many_experts_a_rank_holds(held):
    name, shape = "layers.1.feedforward.experts.w_in", (8, 5, 6)
    whole = value(name, shape, is_expert=True)
    parts = [value(name, shape, (first, 0, 0), (held, 5, 6), True) for first in range(0, 8, held)]
    assert torch.equal(torch.cat(parts), whole)


def test_an_experts_values_do_not_depend_on_how_its_width_is_cut():
    name, shape = "layers.1.feedforward.experts.w_out", (4, 6, 5)
    whole = value(name, shape, is_expert=True)
    assert torch.equal(value(name, shape, (2, 3, 0), (2, 3, 5), True), whole[2:, 3:])


def test_a_rank_that_holds_nothing_of_a_tensor_gets_an_empty_one():
    assert value("layers.1.feedforward.experts.w_in", (4, 6, 5), (4, 0, 0), (0, 6, 5), True).shape == (
        0,
        6,
        5,
    )
    assert value("embedding.weight", (4, 6), (4, 0), (0, 6)).shape == (0, 6)


def test_experts_parameters_and_seeds_all_differ():
    name, shape = "layers.1.feedforward.experts.w_in", (2, 5, 6)
    first, second = value(name, shape, is_expert=True)
    others = [second, value("layers.3.feedforward.experts.w_in", shape, is_expert=True)[0]]
    others.append(value(name, shape, is_expert=True, seed=4)[0])
    assert all(not torch.isclose(first, other).any() for other in others)


@pytest.mark.parametrize("shape", [(12, 5), (5, 12)])
def test_with_a_gain_a_matrix_is_orthogonal_and_its_parts_are_cut_from_the_whole(shape):
    name, box = "layers.1.feedforward.router.weight", (3, shape[1])
    whole = initial_value(3, name, Orthogonal(gain=0.1), shape)
    narrow = whole if shape[0] > shape[1] else whole.t()
    torch.testing.assert_close(narrow.t() @ narrow, 0.01 * torch.eye(5), atol=1e-7, rtol=0)
    part = initial_value(3, name, Orthogonal(gain=0.1), shape, (2, 0), box)
    assert torch.equal(part, whole[2:5])
