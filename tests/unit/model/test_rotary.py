"""Rotary positions: by hand, by their property, and against the formula as one writes it."""

import math

import pytest
import torch
from tiny_model import normal

from moe_train.model.rotary import Rotation, plainly_rotated, rotate


def test_rotated_products_depend_on_the_distance_only():
    query, key = normal(8, seed=1).expand(1, 1, 12, 8), normal(8, seed=2).expand(1, 1, 12, 8)
    scores = (rotate(query) @ rotate(key).transpose(-1, -2))[0, 0]
    for distance in range(12):
        diagonal = scores.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))
    assert (scores[0, 0] - scores[5, 0]).abs() > 0.1


def test_rotation_keeps_lengths_and_leaves_position_zero():
    x = normal(1, 2, 6, 8)
    torch.testing.assert_close(rotate(x).norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(rotate(x)[:, :, 0], x[:, :, 0])


def test_rotation_by_hand():
    # Width 4: pairs (0, 2) at rate 1 and (1, 3) at rate 1/100; position 1.
    turned = rotate(torch.tensor([[[[0.0, 0, 0, 0], [1.0, 1.0, 0.0, 0.0]]]]))[0, 0, 1]
    expected = torch.tensor([math.cos(1), math.cos(0.01), math.sin(1), math.sin(0.01)])
    torch.testing.assert_close(turned, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 5, 2, 6), (1, 1, 1, 2)])
def test_rotation_and_its_gradient_are_those_of_the_formula_bit_for_bit(dtype, shape):
    """Sequences x tokens x heads x width in memory, as projections leave them."""
    angle = normal(shape[1], shape[3] // 2, seed=1)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    results = []
    for rotated in (Rotation.apply, plainly_rotated):
        x = normal(*shape, seed=2).to(dtype).requires_grad_()
        y = rotated(x.transpose(1, 2), cos, sin)
        y.backward(normal(*y.shape, seed=3).to(dtype))
        results.append((y, x.grad))
    (y, grad), (plain_y, plain_grad) = results
    assert torch.equal(y, plain_y)
    assert y.stride() == plain_y.stride()
    assert torch.equal(grad, plain_grad)
    assert grad.any()
