"""Hugging Face's Switch and Mixtral blocks as oracles: the same weights, the same output and gradients."""

from functools import partial

import pytest
import torch
from tiny_model import context, moe_layer, normal, tiny_recipe

B, S, D, E = 3, 16, 32, 8


@pytest.mark.parametrize("slots", [2, 16])
def test_the_layer_agrees_with_hugging_faces_switch(slots):
    from transformers import SwitchTransformersConfig
    from transformers.models.switch_transformers.modeling_switch_transformers import (
        SwitchTransformersSparseMLP,
    )

    config = SwitchTransformersConfig(
        d_model=D,
        d_ff=40,
        num_experts=E,
        expert_capacity=slots,
        dropout_rate=0.0,
        router_jitter_noise=0.0,
        dense_act_fn="relu",
    )
    theirs = SwitchTransformersSparseMLP(config)
    # Their capacity is a number of slots in each sequence: factor * S / E = slots.
    ours = moe_layer(tiny_recipe(f"moe.capacity_factor={slots * E / S}", "moe.router.jitter=0"))
    with torch.no_grad():
        theirs.router.classifier.weight.copy_(ours.router.weight.t())
        for index in range(E):
            expert = theirs.experts[f"expert_{index}"]
            expert.wi.weight.copy_(ours.experts.w_in[index].t())
            expert.wo.weight.copy_(ours.experts.w_out[index].t())
    x = normal(B, S, D)
    mine, yours = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, stats = ours(mine.flatten(0, 1), context(B, S, training=True))
    expected = theirs(yours)
    assert (int(stats.counts["dropped"]) > 0) == (slots == 2)
    torch.testing.assert_close(y.view_as(x), expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(mine.grad, yours.grad)
    torch.testing.assert_close(ours.router.weight.grad, theirs.router.classifier.weight.grad.t())
    for index in range(E):
        expert = theirs.experts[f"expert_{index}"]
        torch.testing.assert_close(ours.experts.w_in.grad[index], expert.wi.weight.grad.t())
        torch.testing.assert_close(ours.experts.w_out.grad[index], expert.wo.weight.grad.t())


def test_the_layer_agrees_with_hugging_faces_mixtral():
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    config = MixtralConfig(
        hidden_size=D,
        intermediate_size=40,
        num_local_experts=E,
        num_experts_per_tok=2,
        router_jitter_noise=0.0,
        hidden_act="silu",
    )
    theirs = MixtralSparseMoeBlock(config)
    ours = moe_layer(
        tiny_recipe(
            "moe.router.kind=top_k", "moe.router.k=2", "moe.capacity_factor=null", "model.activation=swiglu"
        )
    )
    with torch.no_grad():
        theirs.gate.weight.copy_(ours.router.weight.t())
        gate_up = torch.cat((ours.experts.w_gate, ours.experts.w_in), dim=2)
        theirs.experts.gate_up_proj.copy_(gate_up.transpose(1, 2))
        theirs.experts.down_proj.copy_(ours.experts.w_out.transpose(1, 2))
    x = normal(B, S, D)
    mine, yours = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, _ = ours(mine.flatten(0, 1), context(B, S, training=True))
    expected = theirs(yours)
    torch.testing.assert_close(y.view_as(x), expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    # How sums are rounded depends on the number of threads.
    assert_close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)
    assert_close(mine.grad, yours.grad)
    assert_close(ours.router.weight.grad, theirs.gate.weight.grad.t())
    gate_up_grad = torch.cat((ours.experts.w_gate.grad, ours.experts.w_in.grad), dim=2)
    assert_close(gate_up_grad.transpose(1, 2), theirs.experts.gate_up_proj.grad)
    assert_close(ours.experts.w_out.grad.transpose(1, 2), theirs.experts.down_proj.grad)
