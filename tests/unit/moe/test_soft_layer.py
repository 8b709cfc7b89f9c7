"""Soft MoE at points where its answer is known."""

import pytest
import torch
from tiny_model import context, moe_layer, normal, tiny_recipe

from moe_train.config.check import problems
from moe_train.moe.layers.soft import SoftLayer

B, S, D = 2, 6, 32
DROPLESS = ("moe.capacity_factor=null", "moe.eval_capacity_factor=null")


def soft(experts: int, slots: int) -> SoftLayer:
    layer = moe_layer(
        tiny_recipe(
            "moe.router.kind=soft",
            f"moe.router.slots_per_expert={slots}",
            f"moe.num_experts={experts}",
            *DROPLESS,
        )
    )
    assert isinstance(layer, SoftLayer)
    return layer


def test_parts_of_tokens_in_a_slot_and_of_slots_in_a_token_sum_to_one():
    dispatch, combine, _ = soft(3, 2).router(normal(B * S, D), context(B, S))
    assert dispatch.shape == combine.shape == (B, S, 6)
    torch.testing.assert_close(dispatch.sum(1), torch.ones(B, 6))
    torch.testing.assert_close(combine.sum(2), torch.ones(B, S))


def test_logits_are_scaled_cosines():
    router = soft(2, 1).router
    with torch.no_grad():
        router.weight.zero_()
        router.weight[0, 0], router.weight[1, 1] = 5.0, 0.3  # directions alone count
        router.scale.fill_(2.0)
    x = torch.zeros(S, D)
    x[:, 2] = 1.0  # a right angle to both slots
    x[0] = 7 * torch.eye(D)[0]
    dispatch, combine, _ = router(x, context(1, S))
    e = torch.e**2
    assert combine[0, 0].tolist() == pytest.approx([e / (e + 1), 1 / (e + 1)], rel=1e-4)
    assert combine[0, 1].tolist() == pytest.approx([0.5, 0.5])
    assert dispatch[0, :, 0].tolist() == pytest.approx([e / (e + 5)] + [1 / (e + 5)] * 5, rel=1e-4)


def test_the_layer_is_the_formula_written_out():
    layer, x = soft(3, 2), normal(B * S, D)
    dispatch, combine, _ = layer.router(x, context(B, S))
    y, stats = layer(x, context(B, S))
    expected = torch.zeros(B, S, D)
    for sequence, rows in enumerate(x.view(B, S, D)):
        for slot in range(6):
            mixed = dispatch[sequence, :, slot] @ rows
            result = torch.relu(mixed @ layer.experts.w_in[slot // 2]) @ layer.experts.w_out[slot // 2]
            expected[sequence] += torch.outer(combine[sequence, :, slot], result)
    torch.testing.assert_close(y, expected.flatten(0, 1))
    assert stats.load.tolist() == [4, 4, 4]


def test_the_order_of_tokens_goes_through():
    layer, x = soft(3, 2), normal(S, D)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(layer(x[order], context(1, S))[0], layer(x, context(1, S))[0][order])


def test_one_slot_gives_every_token_the_same():
    y, _ = soft(1, 1)(normal(S, D), context(1, S))
    torch.testing.assert_close(y, y[:1].expand(S, -1))


def test_a_large_scale_sorts_tokens_into_slots_of_their_own():
    layer = soft(S, 1)
    x = normal(S, D)
    with torch.no_grad():
        layer.router.weight.copy_(x.t())  # slot i is where token i points
        layer.router.scale.fill_(1e4)
    dispatch, combine, _ = layer.router(x, context(1, S))
    torch.testing.assert_close(dispatch[0], torch.eye(S))
    torch.testing.assert_close(combine[0], torch.eye(S))


def test_a_causal_model_refuses_it_and_an_encoder_does_not():
    recipe = tiny_recipe("moe.router.kind=soft", *DROPLESS)
    assert "routes a token by later tokens too" in str(problems(recipe)[0])
    assert not list(recipe.moe.router.check(recipe))


def test_groups_of_sequences_and_no_slots_are_refused():
    recipe = tiny_recipe(
        "moe.router.kind=soft", "moe.router.slots_per_expert=0", "moe.group_sequences=2", *DROPLESS
    )
    keys = [problem.key for problem in recipe.moe.router.check(recipe)]
    assert keys == ["moe.group_sequences", "moe.router.slots_per_expert"]
