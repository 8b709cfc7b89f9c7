"""SMEAR at points where its answer is known."""

import pytest
import torch
import torch.nn.functional as F
from tiny_model import context, moe_layer, normal, tiny_recipe

from moe_train.config.check import problems
from moe_train.moe.layers.smear import SmearLayer
from moe_train.moe.merging import MergingExperts

B, S, D, E = 2, 7, 32, 4
DROPLESS = ("moe.capacity_factor=null", "moe.eval_capacity_factor=null")


def smear(*overrides: str) -> SmearLayer:
    layer = moe_layer(tiny_recipe("moe.router.kind=smear", f"moe.num_experts={E}", *DROPLESS, *overrides))
    assert isinstance(layer, SmearLayer)
    return layer


@torch.no_grad()
def parts_of(layer: SmearLayer, x: torch.Tensor, training: bool = False, step: int = 0) -> torch.Tensor:
    return layer.router(x, context(B, S, training, step=step)).parts


def test_parts_come_from_the_normalised_mean_of_each_sequence():
    layer, x = smear(), normal(B * S, D)
    router = layer.router
    means = x.view(B, S, D).mean(1)
    unit = [(v - v.mean()) / (v.var(correction=0) + 1e-5).sqrt() for v in (*means, *router.weight.t())]
    logits = torch.stack([(router.gain * one * torch.stack(unit[B:])).sum(1) for one in unit[:B]])
    torch.testing.assert_close(parts_of(layer, x), torch.softmax(logits, 1))


@pytest.mark.parametrize("activation", ["relu", "gelu", "swiglu", "geglu"])
def test_the_layer_is_a_block_with_the_mean_of_all_weights(activation):
    layer, x = smear(f"model.activation={activation}"), normal(B * S, D)
    y, _ = layer(x, context(B, S))
    for sequence, parts in enumerate(parts_of(layer, x)):
        rows = x.view(B, S, D)[sequence]
        merged = [torch.einsum("e,eij->ij", parts, weight) for weight in layer.experts.parameters()]
        hidden = rows @ merged[0]
        if len(merged) == 3:
            gate = F.silu if activation == "swiglu" else F.gelu
            hidden = gate(rows @ merged[1]) * hidden
        else:
            hidden = getattr(F, activation)(hidden)
        torch.testing.assert_close(y.view(B, S, D)[sequence], hidden @ merged[-1])


def test_merging_linear_experts_is_their_ensemble_and_merging_others_is_not():
    layer, x = smear(), normal(B * S, D).abs() + 0.1
    parts = parts_of(layer, x).repeat_interleave(S, dim=0)

    def ensemble() -> torch.Tensor:
        each = [torch.relu(x @ a) @ b for a, b in zip(layer.experts.w_in, layer.experts.w_out, strict=True)]
        return torch.einsum("te,etd->td", parts, torch.stack(each))

    assert not torch.allclose(layer(x, context(B, S))[0], ensemble(), atol=1e-2)
    with torch.no_grad():  # with one second matrix for all, and nothing negative, relu is linear
        layer.experts.w_in.abs_()
        layer.experts.w_out.copy_(layer.experts.w_out[:1].expand_as(layer.experts.w_out))
    torch.testing.assert_close(layer(x, context(B, S))[0], ensemble(), rtol=1e-4, atol=1e-4)


def test_a_part_of_one_is_the_expert_itself():
    layer, x = smear(), normal(B * S, D)
    with torch.no_grad():
        layer.router.weight.copy_(normal(D, E, seed=3))
        layer.router.gain.fill_(1e3)
    expert = int(parts_of(layer, x)[0].argmax())
    assert float(parts_of(layer, x)[0, expert]) == pytest.approx(1.0)
    y, stats = layer(x, context(B, S))
    alone = torch.relu(x[:S] @ layer.experts.w_in[expert]) @ layer.experts.w_out[expert]
    torch.testing.assert_close(y[:S], alone)
    assert int(stats.load.sum()) == B * S
    assert int(stats.load[expert]) >= S


@pytest.mark.parametrize("is_kept", [False, True])
def test_gradients_of_merged_weights_are_those_of_plain_sums_and_add_up_until_reset(is_kept):
    experts = MergingExperts(E, 5, 6, "swiglu")
    for index, weight in enumerate(experts.parameters()):
        weight.data.copy_(normal(*weight.shape, seed=index))
    parts = normal(3, E, seed=9).requires_grad_()
    grads = [normal(3, 5, 6, seed=10), normal(3, 5, 6, seed=11), normal(3, 6, 5, seed=12)]
    plain = [torch.einsum("me,eij->mij", parts, weight) for weight in experts.parameters()]
    wanted = torch.autograd.grad(plain, [parts, *experts.parameters()], grads)
    experts.gradient_scale = 0.25
    if is_kept:
        for tensor in experts.keep_gradients().tensors:
            tensor.fill_(float("nan"))
    for times in (1, 2):
        parts.grad = None
        torch.autograd.backward(experts(parts), grads)
        torch.testing.assert_close(parts.grad, wanted[0])
        for weight, expected in zip(experts.parameters(), wanted[1:], strict=True):
            torch.testing.assert_close(weight.grad, times * 0.25 * expected)


def test_experts_are_left_out_in_training_only_and_the_others_make_up_for_them():
    layer, x = smear("moe.router.drop_experts=0.5"), normal(B * S, D)
    with torch.no_grad():
        layer.router.gain.fill_(0.05)  # no part is small by itself
    whole = parts_of(layer, x)
    dropped = torch.cat([parts_of(layer, x, training=True, step=step) for step in range(200)])
    torch.testing.assert_close(dropped.sum(1), torch.ones(len(dropped)))
    share = float((dropped < 1e-6).float().mean())
    # 3 standard deviations of 1,600 draws; where all 4 are out (1 in 16) none is
    assert share == pytest.approx(0.5 - 1 / 16, abs=0.04)
    for row, full in zip(dropped[:6], whole.repeat(3, 1), strict=True):
        kept = row > 1e-6
        torch.testing.assert_close(row[kept], full[kept] / full[kept].sum(), rtol=1e-5, atol=1e-6)


def test_a_segment_is_served_by_what_the_one_before_decided():
    layer, x = smear("moe.router.segment=3"), normal(B * S, D)  # segments of 3, 3 and 1 tokens
    parts = parts_of(layer, x)
    assert parts.shape == (B * 3, E)
    torch.testing.assert_close(parts.view(B, 3, E)[:, 0], torch.full((B, E), 1 / E))
    whole = smear()
    for place in (1, 2):
        before = x.view(B, S, D)[:, (place - 1) * 3 : place * 3]
        alone = whole.router(before.flatten(0, 1), context(B, 3)).parts
        torch.testing.assert_close(parts.view(B, 3, E)[:, place], alone)
    y, stats = layer(x, context(B, S))
    merged = [torch.einsum("e,eij->ij", parts[2], weight) for weight in layer.experts.parameters()]
    torch.testing.assert_close(y[6], torch.relu(x[6] @ merged[0]) @ merged[1])
    assert int(stats.load.sum()) == B * S


def test_segments_are_causal():
    layer, x = smear("moe.router.segment=2"), normal(S, D)
    y, _ = layer(x, context(1, S, training=True))
    for position in range(1, S):
        changed = x.clone()
        changed[position:] = normal(S - position, D, seed=position)
        earlier = layer(changed, context(1, S, training=True))[0][:position]
        torch.testing.assert_close(earlier, y[:position])


def test_a_causal_model_refuses_whole_sequences_and_takes_segments():
    whole = tiny_recipe("moe.router.kind=smear", *DROPLESS)
    assert "routes a token by later tokens too" in str(problems(whole)[0])
    assert problems(tiny_recipe("moe.router.kind=smear", "moe.router.segment=4", *DROPLESS)) == []


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("moe.router.segment=16", "moe.router.segment"),
        ("moe.router.segment=0", "moe.router.segment"),
        ("moe.router.drop_experts=1", "moe.router.drop_experts"),
        ("moe.group_sequences=2", "moe.group_sequences"),
    ],
)
def test_what_makes_no_sense_is_refused(override, key):
    causal = ("moe.router.kind=smear", "moe.router.segment=4", *DROPLESS)
    assert [problem.key for problem in problems(tiny_recipe(*causal, override))] == [key]


SPANS = (  # of 16 tokens 2 are cut out in one span: 16 - 2 + 2 for the encoder, 4 for the decoder
    "moe.router.kind=smear",
    "model.architecture=encoder_decoder",
    "objective.kind=span_corruption",
    *DROPLESS,
)


@pytest.mark.parametrize(
    ("overrides", "too_short"),
    [
        (("moe.router.segment=3",), []),
        (("moe.router.segment=4",), ["the 4 tokens of a sequence in the decoder"]),
        (("moe.router.segment=4", "moe.stacks=encoder"), []),
        (("moe.router.segment=16", "moe.stacks=encoder"), ["the 16 tokens of a sequence in the encoder"]),
        (("moe.router.segment=16", "moe.stacks=decoder"), ["the 4 tokens of a sequence in the decoder"]),
        (("moe.router.segment=16",), ["the 16 tokens of", "the 4 tokens of"]),
        (("moe.router.segment=16", "moe.every=0"), []),
    ],
)
def test_a_segment_is_shorter_than_the_sequences_of_every_stack_that_merges(overrides, too_short):
    recipe = tiny_recipe(*SPANS, *overrides)
    found = problems(recipe)
    assert [problem.key for problem in found] == ["moe.router.segment"] * len(too_short)
    for problem, reason in zip(found, too_short, strict=True):
        assert f"must be below {reason}" in problem.rule
