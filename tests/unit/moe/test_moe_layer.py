"""The MoE layer at points where its answer is known."""

import pytest
import torch
from jaxtyping import Float, Int
from tiny_model import context, moe_layer, normal, tiny_recipe
from torch import Tensor

from moe_train.config.check import problems
from moe_train.config.notes import notes

B, S, D, E = 3, 16, 32, 8


@pytest.mark.parametrize("activation", ["relu", "gelu", "swiglu"])
def test_one_expert_is_the_plain_feedforward_block(activation):
    layer = moe_layer(tiny_recipe("moe.num_experts=1", f"model.activation={activation}"))
    x = normal(B * S, D)
    y, _ = layer(x, context(B, S))
    hidden = x @ layer.experts.w_in[0]
    if activation == "swiglu":
        hidden = torch.nn.functional.silu(x @ layer.experts.w_gate[0]) * hidden
    else:
        hidden = getattr(torch.nn.functional, activation)(hidden)
    # There are two kernels for gelu, and the experts' is not the one that torch takes by itself.
    tolerance = 1e-6 if activation == "gelu" else 0.0
    torch.testing.assert_close(y, hidden @ layer.experts.w_out[0], rtol=tolerance, atol=tolerance)


def test_the_order_of_experts_does_not_matter():
    layer, x = moe_layer(tiny_recipe()), normal(B * S, D)
    y, stats = layer(x, context(B, S, training=True))
    order = torch.tensor([3, 0, 7, 1, 6, 2, 5, 4])
    with torch.no_grad():
        layer.router.weight.copy_(layer.router.weight[:, order])
        for weight in layer.experts.parameters():
            weight.copy_(weight[order])
    permuted, permuted_stats = layer(x, context(B, S, training=True))
    torch.testing.assert_close(permuted, y)
    assert torch.equal(permuted_stats.load, stats.load[order])
    assert int(stats.counts["dropped"]) > 0


def test_a_capacity_factor_of_the_number_of_experts_drops_nothing():
    layer, x = moe_layer(tiny_recipe("moe.capacity_factor=8.0", "moe.min_capacity=1")), normal(B * S, D)
    with torch.no_grad():
        layer.router.weight.zero_()  # ties: every token goes to expert 0
    _, stats = layer(x, context(B, S, training=True))
    assert stats.load.tolist() == [B * S, 0, 0, 0, 0, 0, 0, 0]
    assert int(stats.counts["dropped"]) == 0


def test_dropping_a_token_changes_its_own_row_only():
    x = normal(B * S, D)
    limited, stats = moe_layer(tiny_recipe())(x, context(B, S, training=True))
    free, free_stats = moe_layer(tiny_recipe("moe.capacity_factor=null"))(x, context(B, S, training=True))
    refused = (limited == 0).all(1)
    assert 0 < int(refused.sum()) == int(stats.counts["dropped"])
    torch.testing.assert_close(limited[~refused], free[~refused])
    assert not (free == 0).all(1).any()
    assert int(free_stats.counts["dropped"]) == 0


def test_load_is_counted_before_capacity():
    x = normal(B * S, D)
    _, stats = moe_layer(tiny_recipe())(x, context(B, S, training=True))
    _, free = moe_layer(tiny_recipe("moe.capacity_factor=null"))(x, context(B, S, training=True))
    assert int(stats.load.sum()) == B * S
    assert torch.equal(stats.load, free.load)


def test_validation_has_its_own_capacity():
    layer, x = moe_layer(tiny_recipe("moe.eval_capacity_factor=8.0", "moe.router.jitter=0")), normal(B * S, D)
    _, training = layer(x, context(B, S, training=True))
    _, validation = layer(x, context(B, S, training=False))
    assert int(training.counts["dropped"]) > 0 == int(validation.counts["dropped"])


def test_a_token_whose_expert_says_nothing_teaches_the_router_nothing():
    layer, x = moe_layer(tiny_recipe("moe.capacity_factor=null")), normal(B * S, D)
    chosen = (x @ layer.router.weight).argmax(1)
    expert = int(chosen.mode().values)
    with torch.no_grad():
        layer.experts.w_out[expert].zero_()
    y, _ = layer(x, context(B, S))
    (silent,) = torch.autograd.grad(y[chosen == expert].sum(), layer.router.weight, retain_graph=True)
    (heard,) = torch.autograd.grad(y[chosen != expert].sum(), layer.router.weight)
    assert not silent.any()
    assert heard.any()


def test_two_validation_passes_are_equal_bit_by_bit():
    layer, x = moe_layer(tiny_recipe()), normal(B * S, D)
    first, _ = layer(x, context(B, S, step=1))
    second, _ = layer(x, context(B, S, step=2))
    assert torch.equal(first, second)


def test_jitter_is_drawn_anew_at_every_step_and_again_the_same():
    layer, x = moe_layer(tiny_recipe()), normal(B * S, D)
    first, again, next_step = (layer(x, context(B, S, training=True, step=step))[0] for step in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, next_step)


@pytest.mark.parametrize("router", ["switch", "top_k"])
def test_what_happens_to_a_sequence_does_not_depend_on_the_others_in_the_batch(router):
    layer, x = moe_layer(tiny_recipe(f"moe.router.kind={router}", "moe.router.jitter=0.1")), normal(B * S, D)
    together, stats = layer(x, context(B, S, training=True))
    assert int(stats.counts["dropped"]) > 0
    for number in range(B):
        alone, _ = layer(x[number * S : (number + 1) * S], context(1, S, training=True, first=number))
        torch.testing.assert_close(alone, together[number * S : (number + 1) * S])


def test_a_group_of_two_sequences_shares_its_capacity():
    layer, x = moe_layer(tiny_recipe("moe.group_sequences=2", "moe.router.jitter=0")), normal(2 * S, D)
    with torch.no_grad():
        layer.router.weight.zero_()
    y, stats = layer(x, context(2, S, training=True))
    kept = [token for token in range(2 * S) if y[token].any()]
    assert kept == [0, 1, 2, 3]  # floor(1.0 * 32 / 8) slots of expert 0 for both sequences together
    assert int(stats.counts["dropped"]) == 28


def test_statistics_have_the_types_and_shapes_they_promise():
    layer = moe_layer(tiny_recipe())
    _, stats = layer(normal(B * S, D), context(B, S, training=True))
    assert isinstance(stats.load, Int[Tensor, f"{E}"])
    assert isinstance(stats.counts["dropped"], Int[Tensor, ""])
    assert isinstance(stats.counts["router_entropy"], Float[Tensor, ""])
    assert all(isinstance(loss, Float[Tensor, ""]) and loss.requires_grad for loss in stats.losses.values())
    assert stats.losses.keys() == stats.coefficients.keys() == {"balance", "z"}


@pytest.mark.parametrize("exchange", ["all_to_all", "one_sided", "hierarchical"])
@pytest.mark.parametrize("router", ["switch", "top_k"])
def test_the_exchange_between_workers_agrees_with_local_dispatch_on_one_worker(router, exchange):
    x, results = normal(B * S, D), []
    for kind in ("local", exchange):
        layer = moe_layer(tiny_recipe(f"moe.dispatch.kind={kind}", f"moe.router.kind={router}"))
        leaf = x.clone().requires_grad_()
        y, _ = layer(leaf, context(B, S, training=True))
        y.square().sum().backward()
        results.append((y.detach(), leaf.grad, *(parameter.grad for parameter in layer.parameters())))
    for local, exchanged in zip(*results, strict=True):
        torch.testing.assert_close(exchanged, local)


@pytest.mark.parametrize("exchange", ["all_to_all", "one_sided", "hierarchical"])
def test_every_dispatcher_weighs_bf16_rows_by_the_weight_in_fp32(exchange):
    results = []
    for kind in ("local", exchange):
        layer = moe_layer(tiny_recipe(f"moe.dispatch.kind={kind}", "moe.router.kind=top_k"))
        x = normal(B * S, D).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y, _ = layer(x, context(B, S, training=True))
        y.square().sum().backward()
        results.append((y.detach(), x.grad, *(parameter.grad for parameter in layer.parameters())))
    for local, exchanged in zip(*results, strict=True):
        # Few elements differ, where a sum in fp32 is near the middle of two bf16 numbers.
        assert (exchanged - local).abs().mean() < 2e-4 * local.abs().mean()


def test_bf16_products_leave_the_router_in_fp32():
    recipe = tiny_recipe("moe.capacity_factor=null")
    layer, x = moe_layer(recipe), normal(B * S, D)
    exact, exact_stats = layer(x, context(B, S))
    with torch.autocast("cpu", torch.bfloat16):
        rounded, stats = layer(x, context(B, S))
    assert rounded.dtype == torch.float32
    assert torch.equal(stats.load, exact_stats.load)
    assert torch.equal(stats.losses["balance"], exact_stats.losses["balance"])
    assert 0 < (rounded - exact).abs().max() < 0.05 * exact.abs().max()


def test_with_as_many_reroutes_as_there_are_other_experts_no_token_is_left_behind():
    # Tokens that have something in common, so that they like the same experts, and room for each exactly once.
    tight = ("moe.capacity_factor=1.0", "moe.min_capacity=1", "moe.router.jitter=0")
    x = normal(B * S, D) + 1
    plain, rerouted = moe_layer(tiny_recipe(*tight)), moe_layer(tiny_recipe(*tight, "moe.router.reroutes=7"))
    before, stats = plain(x, context(B, S, training=True))
    after, rerouted_stats = rerouted(x, context(B, S, training=True))
    assert int(stats.counts["dropped"]) > 0
    assert int(rerouted_stats.counts["dropped"]) == 0
    assert (after != 0).any(1).all()
    assert torch.equal(rerouted_stats.load, stats.load)  # first choices, as they were before any limit
    torch.testing.assert_close(rerouted_stats.losses, stats.losses)
    served = before.any(1)
    torch.testing.assert_close(after[served], before[served])
    weights, experts = torch.softmax(x @ plain.router.weight, 1), plain.experts
    hidden = torch.einsum("td,edf->tef", x, experts.w_in).relu()
    choices = weights.unsqueeze(2) * torch.einsum("tef,efd->ted", hidden, experts.w_out)
    near = (choices - after.unsqueeze(1)).abs().amax(2) < 1e-5
    assert (near.sum(1) == 1).all(), "every token has the output of one expert, times its probability"
    assert (near.view(B, S, E).sum(1) == S // E).all(), "every expert has filled its slots"


@pytest.mark.parametrize(("factor", "training"), [("8.0", True), ("1.0", False)])
def test_reroutes_change_nothing_where_no_expert_is_full(factor, training):
    room = (f"moe.capacity_factor={factor}", "moe.eval_capacity_factor=null")
    layers = [moe_layer(tiny_recipe(*room, *more)) for more in ((), ("moe.router.reroutes=3",))]
    x = normal(B * S, D)
    (plain, stats), (rerouted, rerouted_stats) = (layer(x, context(B, S, training)) for layer in layers)
    assert torch.equal(plain, rerouted)
    assert torch.equal(stats.load, rerouted_stats.load)
    assert int(stats.counts["dropped"]) == int(rerouted_stats.counts["dropped"]) == 0


@pytest.mark.parametrize(
    ("overrides", "rule"),
    [
        (("moe.router.reroutes=8",), "must be at least 0 and below moe.num_experts=8"),
        (("moe.router.reroutes=1", "moe.router.policy=sampling"), "needs a next best expert"),
        (
            ("moe.router.reroutes=1", "moe.capacity_factor=null", "moe.eval_capacity_factor=null"),
            "has no effect without capacity factors",
        ),
    ],
)
def test_reroutes_that_cannot_be_are_refused(overrides, rule):
    (problem,) = problems(tiny_recipe(*overrides))
    assert problem.key == "moe.router.reroutes"
    assert rule in str(problem)


def test_reroutes_are_told_to_see_later_tokens():
    assert any("depends on tokens after it" in note for note in notes(tiny_recipe("moe.router.reroutes=3")))
