"""Expert dropout and the scale of experts' gradients: options of a layer that go with every router of edges."""

import pytest
import torch
from tiny_model import context, moe_layer, normal, tiny_recipe

from moe_train.config.check import problems
from moe_train.moe.experts import Experts
from moe_train.moe.token_numbers import packed, token_numbers, unpack

B, S, D = 3, 16, 32
DROPLESS = ("moe.capacity_factor=null", "moe.eval_capacity_factor=null", "moe.router.jitter=0")
COUNTS = [3, 0, 1, 4]


@pytest.mark.parametrize("activation", ["relu", "gelu", "swiglu", "geglu"])
@pytest.mark.parametrize("is_kept", [False, True])
def test_dropped_units_are_those_of_a_plain_loop_in_output_and_gradients(activation, is_kept):
    experts = Experts(4, 5, 7, activation)
    for index, weight in enumerate(experts.parameters()):
        weight.data.copy_(normal(*weight.shape, seed=index))
    rows, grad = normal(8, 5, seed=8).requires_grad_(), normal(8, 5, seed=9)
    factors = (normal(8, 7, seed=10) > 0).float() * 2
    parts = []
    for expert, run in enumerate(torch.arange(8).split(COUNTS)):
        w_in, *w_gate, w_out = (weight[expert] for weight in experts.parameters())
        hidden = rows[run] @ w_in
        if w_gate:
            gate = torch.nn.functional.silu if activation == "swiglu" else torch.nn.functional.gelu
            active = gate(rows[run] @ w_gate[0]) * hidden
        else:
            active = getattr(torch.nn.functional, activation)(hidden)
        parts.append((active * factors[run]) @ w_out)
    expected = torch.cat(parts)
    wanted = torch.autograd.grad(expected, [rows, *experts.parameters()], grad)
    if is_kept:
        experts.keep_gradients()
    got = experts(rows, COUNTS, torch.empty_like, factors)
    torch.testing.assert_close(got, expected)
    got.backward(grad)
    for tensor, gradient in zip([rows, *experts.parameters()], wanted, strict=True):
        torch.testing.assert_close(tensor.grad, gradient, rtol=1e-4, atol=1e-5)


def test_about_the_share_asked_for_is_dropped_and_the_mean_stays():
    layer = moe_layer(tiny_recipe("moe.num_experts=1", "moe.expert_dropout=0.4", *DROPLESS))
    with torch.no_grad():  # every hidden unit is 1, and the output is their mean
        layer.experts.w_in.fill_(1 / D)
        layer.experts.w_out.fill_(1 / 40)
    x = torch.ones(B * S, D)
    y, _ = layer(x, context(B, S, training=True))
    kept = y.detach()[:, 0] * 0.6 * 40  # units kept of 40
    torch.testing.assert_close(kept, kept.round(), rtol=0, atol=1e-3)
    assert len(kept.round().unique()) > 5, "each token drops units of its own"
    assert float(kept.mean()) == pytest.approx(24, abs=4 * (40 * 0.24 / (B * S)) ** 0.5)
    torch.testing.assert_close(layer(x, context(B, S))[0], torch.ones(B * S, D))


def test_draws_differ_by_step_and_by_expert_and_are_the_same_wherever_the_sequence_is():
    layer = moe_layer(tiny_recipe("moe.router.kind=top_k", "moe.expert_dropout=0.4", *DROPLESS))
    x = normal(B * S, D)
    first, again, later = (layer(x, context(B, S, training=True, step=step))[0] for step in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    alone, _ = layer(x[S : 2 * S], context(1, S, training=True, step=1, first=1))
    torch.testing.assert_close(alone, first[S : 2 * S])
    with torch.no_grad():  # the same weights in all experts: only their draws differ
        for weight in layer.experts.parameters():
            weight.copy_(weight[:1].expand_as(weight).clone())
    here = context(B, S, training=True)
    routing = layer.router(x, here)
    dropout = layer._expert_dropout(routing.num_experts, here, torch.float32)
    dispatched = layer.dispatcher.dispatch(dropout.tokens, routing)
    factors = dropout.factors(dispatched.rows, dispatched.counts)
    order = torch.argsort(routing.expert_ids, stable=True)
    of_token = factors[routing.token_ids[order] == 0]
    assert len(of_token) == 2
    assert not torch.equal(of_token[0], of_token[1])


def test_numbers_of_tokens_come_through_an_exchange_of_floats():
    here = context(2, 3, first=5)
    assert token_numbers(here.rows).tolist() == [15, 16, 17, 18, 19, 20]
    large = torch.tensor([0, 1, 2**20, 2**24 + 1, 2**53 + 12345, 2**62 + 7])
    assert packed(large).dtype == torch.float32
    assert torch.equal(unpack(packed(large)), large)


def test_experts_gradients_are_scaled_and_no_others():
    x = normal(B * S, D)
    gradients = []
    for scale in ("false", "true"):
        layer = moe_layer(tiny_recipe(f"moe.scale_expert_gradients={scale}", *DROPLESS))
        layer(x, context(B, S, training=True))[0].square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in layer.named_parameters()})
    for name, plain in gradients[0].items():
        factor = 8**-0.5 if "experts" in name else 1.0
        torch.testing.assert_close(gradients[1][name], plain * factor)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (("moe.expert_dropout=1",), "moe.expert_dropout=1.0: must be in [0, 1)"),
        (
            ("moe.expert_dropout=0.1", "moe.router.kind=smear", "moe.router.segment=4", *DROPLESS[:2]),
            "sends no tokens to experts",
        ),
    ],
)
def test_what_cannot_be_had_is_refused(overrides, text):
    assert text in str(problems(tiny_recipe(*overrides))[0])
