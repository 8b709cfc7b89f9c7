"""What the layer of every kind of router must keep to; a new kind is tested by its line in the registry."""

import math
from dataclasses import replace

import pytest
import torch
from tiny_model import context, moe_layer, normal, tiny_recipe, vocabulary, with_padding

from moe_train.config.kinds.router.base import BaseRouterConfig
from moe_train.config.kinds.router.router import GateConfig
from moe_train.config.registry import REGISTRY
from moe_train.moe.layers.layer import MoELayer
from moe_train.moe.policy import rewarded
from moe_train.moe.routing import TableRouter
from moe_train.random import generator_for

SEQUENCES, LENGTH, WIDTH, EXPERTS = 3, 8, 32, 8
KINDS = sorted(REGISTRY["moe.router"])
CONFIGS = {kind: REGISTRY["moe.router"][kind].config for kind in KINDS}
GATED = [kind for kind in KINDS if issubclass(CONFIGS[kind], GateConfig)]
ASSIGNED = [kind for kind in KINDS if issubclass(CONFIGS[kind], BaseRouterConfig)]
"""Kinds that look at later tokens too, but in training alone."""


def layer_of(kind: str, *overrides: str, experts: int = EXPERTS) -> MoELayer:
    """A dropless layer of `kind`."""
    unlimited = ("moe.capacity_factor=null", "moe.eval_capacity_factor=null", f"moe.num_experts={experts}")
    recipe = tiny_recipe(f"moe.router.kind={kind}", *unlimited, *overrides)
    layer = moe_layer(recipe)
    if isinstance(layer.router, TableRouter):
        layer.router.table = layer.router.make_table(vocabulary(recipe), generator_for(0, "table"))
    return layer


def tokens(sequences: int = SEQUENCES) -> torch.Tensor:
    return normal(sequences * LENGTH, WIDTH, seed=50)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_every_layer_gives_a_row_for_a_row_and_counts_what_its_experts_got(kind, training):
    y, stats = layer_of(kind)(tokens(), context(SEQUENCES, LENGTH, training))
    assert (y.shape, y.dtype) == ((SEQUENCES * LENGTH, WIDTH), torch.float32)
    assert y.isfinite().all()
    assert (stats.load.shape, stats.load.dtype) == ((EXPERTS,), torch.int64)
    assert int(stats.load.sum()) > 0
    assert stats.counts["dropped"].shape == ()
    assert stats.losses.keys() == stats.coefficients.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_of_a_layer_has_a_gradient(kind):
    layer, x = layer_of(kind), tokens().requires_grad_()
    y, stats = layer(x, context(SEQUENCES, LENGTH, training=True))
    stats = rewarded(stats, normal(len(x), seed=51))
    (y.square().sum() + sum(stats.losses.values())).backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert x.grad is not None
    assert (x.grad != 0).any(1).float().mean() > 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_validation_is_the_same_at_every_step_and_with_every_seed(kind):
    layer = layer_of(kind)
    first, _ = layer(tokens(), context(SEQUENCES, LENGTH))
    step = 0 if CONFIGS[kind].validation_follows_step else 7
    again, _ = layer(tokens(), context(SEQUENCES, LENGTH, step=step, seed=4))
    assert torch.equal(first, again)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_a_sequence_gets_the_same_wherever_it_is(kind, training):
    layer, x = layer_of(kind), tokens()
    together, _ = layer(x, context(SEQUENCES, LENGTH, training))
    for sequence in range(SEQUENCES):
        rows = slice(sequence * LENGTH, (sequence + 1) * LENGTH)
        alone, _ = layer(x[rows], context(1, LENGTH, training, first=sequence))
        torch.testing.assert_close(alone, together[rows])


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_token_gets_depends_on_later_tokens_only_where_the_configuration_says_so(kind):
    layer = layer_of(kind)
    leaks = layer.spec.router.sees_later_tokens
    x, other = tokens(1), tokens(1)
    other[LENGTH // 2 :] = normal(LENGTH - LENGTH // 2, WIDTH, seed=51)
    here = context(1, LENGTH, training=kind not in ASSIGNED)
    first, second = (layer(rows, here)[0][: LENGTH // 2] for rows in (x, other))
    # batch_priority leaks by the order in which full experts serve; nothing is full here.
    assert torch.allclose(first, second, atol=1e-6) == (not leaks or kind == "batch_priority")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_a_layer_without_tokens_gives_none_and_loses_nothing(kind, training, padded):
    here = context(0, LENGTH, training)
    if padded:
        here = with_padding(here, torch.ones(0, LENGTH, dtype=torch.bool))
    y, stats = layer_of(kind)(tokens(0), here)
    assert y.shape == (0, WIDTH)
    assert int(stats.load.sum()) == 0
    assert {
        name: loss.item() for name, loss in rewarded(stats, torch.zeros(0)).losses.items() if loss != 0
    } == {}


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_router_that_learned_nothing_is_undecided_between_all_experts(kind, training, padded):
    """What `router_entropy` and `router_top_probability` mean, for every kind: ln E and 1 / E where logits are 0."""
    layer, here = layer_of(kind), context(SEQUENCES, LENGTH, training)
    for weight in layer.router.parameters():
        weight.data.zero_()
    if padded:
        here = with_padding(here, torch.arange(LENGTH) < torch.tensor([[LENGTH], [5], [1]]))
    _, stats = layer(tokens(), here)
    num_tokens = int(here.rows.num_real)
    learns = layer.spec.router.num_parameters(WIDTH, EXPERTS) > 0
    entropy, top = (num_tokens * math.log(EXPERTS), num_tokens / EXPERTS) if learns else (0, 0)
    assert float(stats.counts["router_entropy"]) == pytest.approx(entropy, rel=1e-5)
    assert float(stats.counts["router_top_probability"]) == pytest.approx(top, rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "training"),
    # In training noise is drawn for an expert's number.
    [(kind, False) for kind in KINDS if not CONFIGS[kind].depends_on_expert_number]
    + [(kind, True) for kind in ASSIGNED],
)
def test_the_order_of_experts_does_not_matter(kind, training):
    """Neighbours change places, which leaves every group of hierarchical_top_k and every prototype as it is."""
    layer, x = layer_of(kind), tokens()
    expected, before = layer(x, context(SEQUENCES, LENGTH, training))
    swapped = torch.arange(EXPERTS).view(-1, 2).flip(1).flatten()
    with torch.no_grad():
        for weight in layer.router.parameters():
            if weight.ndim == 2 and weight.shape[1] == EXPERTS:
                weight.copy_(weight[:, swapped])
        for weight in layer.experts.parameters():
            weight.copy_(weight[swapped])
    if isinstance(layer.router, TableRouter):
        layer.router.table = swapped[layer.router.table]
    y, after = layer(x, context(SEQUENCES, LENGTH, training))
    torch.testing.assert_close(y, expected)
    assert torch.equal(after.load, before.load[swapped])
    for name, loss in before.losses.items():
        torch.testing.assert_close(after.losses[name], loss)


ONE_CHOICE = {
    "top_k": ("moe.router.k=1", "moe.router.normalize=false"),
    "deepseek": ("moe.router.k=1", "moe.router.normalize=false"),
    "prototypes": ("moe.router.prototypes=1",),
    "batch_priority": ("moe.router.k=1",),
    "expert_choice": ("moe.router.tokens_per_expert=1",),
    "dselect_k": ("moe.router.k=1",),
}
TWO_AT_LEAST = {"gshard", "noisy_top_k", "hierarchical_top_k"}
SIGMOID = {"base", "sinkhorn", "deepseek"}


@pytest.mark.parametrize("kind", sorted(set(KINDS) - TWO_AT_LEAST - {"soft"}))
@pytest.mark.parametrize("training", [True, False])
def test_one_expert_is_a_plain_block_with_weight_one_or_the_sigmoid_of_its_score(kind, training):
    jitter = ("moe.router.jitter=0",) if kind == "switch" else ()
    layer, x = layer_of(kind, *ONE_CHOICE.get(kind, ()), *jitter, experts=1), tokens()
    y, stats = layer(x, context(SEQUENCES, LENGTH, training))
    hidden = x @ layer.experts.w_in[0]
    active = torch.relu(hidden) if layer.experts.activation == "relu" else torch.nn.functional.gelu(hidden)
    expected = active @ layer.experts.w_out[0]
    if kind in SIGMOID:
        expected = torch.sigmoid(x @ layer.router.weight) * expected
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    assert stats.load.tolist() == [len(x)]
    assert int(stats.counts["dropped"]) == 0


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not CONFIGS[kind].may_split_equal_tokens])
def test_tokens_that_are_all_alike_get_the_same_and_crowd_at_the_same_experts(kind):
    layer = layer_of(kind)
    x = tokens(1)[:1].expand(SEQUENCES * LENGTH, -1)
    y, stats = layer(x, context(SEQUENCES, LENGTH))
    torch.testing.assert_close(y, y[:1].expand_as(y))
    if kind not in ("soft", "dselect_k"):  # every slot is filled; every code has some weight at first
        assert int((stats.load > 0).sum()) == layer.spec.router.num_choices
        assert int(stats.load.max()) == len(x)


@pytest.mark.parametrize("kind", ["base", "sinkhorn", "expert_choice"])
def test_what_balances_by_construction_does_so_for_tokens_that_are_all_alike(kind):
    layer = layer_of(kind)
    x = tokens(1)[:1].expand(SEQUENCES * LENGTH, -1)
    _, stats = layer(x, context(SEQUENCES, LENGTH, training=True))
    if kind == "sinkhorn":  # whose plan gives equal tokens equal rows, so all go one way
        assert int(stats.load.max()) == len(x)
    else:
        assert len(stats.load.unique()) == 1


ALL_CHOICES = [
    ("top_k", f"moe.router.k={EXPERTS}", EXPERTS, "softmax"),
    ("batch_priority", f"moe.router.k={EXPERTS}", EXPERTS, "softmax"),
    ("noisy_top_k", f"moe.router.k={EXPERTS}", EXPERTS, "softmax"),
    ("gshard", "moe.router.jitter=0", 2, "softmax"),
    ("deepseek", f"moe.router.k={EXPERTS}", EXPERTS, "sigmoid"),
    ("expert_choice", f"moe.router.tokens_per_expert={EXPERTS}", EXPERTS, "softmax"),
]


@pytest.mark.parametrize(("kind", "override", "experts", "scores"), ALL_CHOICES)
def test_as_many_choices_as_experts_are_a_dense_mixture(kind, override, experts, scores):
    layer, x = layer_of(kind, override, experts=experts), tokens()
    y, stats = layer(x, context(SEQUENCES, LENGTH))
    logits = x @ layer.router.weight
    weights = (
        logits.softmax(1) if scores == "softmax" else logits.sigmoid() / logits.sigmoid().sum(1, keepdim=True)
    )
    hidden = torch.einsum("td,edf->tef", x, layer.experts.w_in)
    active = torch.relu(hidden) if layer.experts.activation == "relu" else torch.nn.functional.gelu(hidden)
    expected = torch.einsum("te,tef,efd->td", weights, active, layer.experts.w_out)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    assert stats.load.tolist() == [len(x)] * experts


@pytest.mark.parametrize("kind", ["soft", "smear"])
def test_padding_does_not_matter_and_gets_nothing_from_a_mixture_of_tokens(kind):
    layer, x = layer_of(kind), tokens()
    is_real = torch.arange(LENGTH).expand(SEQUENCES, -1) < torch.tensor([[LENGTH], [5], [0]])
    here = with_padding(context(SEQUENCES, LENGTH), is_real)
    first, _ = layer(x, here)
    changed = torch.where(is_real.flatten().unsqueeze(1), x, normal(*x.shape, seed=9))
    second, _ = layer(changed, here)
    real = is_real.flatten()
    assert torch.equal(first[real], second[real])
    assert second.isfinite().all()
    short = context(1, 5, first=1)
    alone, _ = layer(x[LENGTH : LENGTH + 5], short)
    torch.testing.assert_close(alone, first[LENGTH : LENGTH + 5])


STILL = ("moe.router.jitter=0",)
DRAWN_OR_NOT = [
    *((kind, (), EXPERTS) for kind in KINDS),
    *((kind, ONE_CHOICE.get(kind, ()), 1) for kind in sorted(set(KINDS) - TWO_AT_LEAST)),
    *(
        (kind, (*ONE_CHOICE.get(kind, ()), "moe.router.jitter=0.5"), 1)
        for kind in GATED
        if kind not in TWO_AT_LEAST
    ),
    *((kind, STILL, EXPERTS) for kind in GATED),
    *((kind, ("moe.router.jitter=0.5",), EXPERTS) for kind in GATED),
    ("deepseek", (*ONE_CHOICE["deepseek"], "moe.router.jitter=0.5", "moe.router.scores=softmax"), 1),
    ("switch", (*STILL, "moe.router.policy=sampling"), EXPERTS),
    ("switch", (*STILL, "moe.router.input_dropout=0.1"), EXPERTS),
    *(
        ("gshard", (*STILL, f"moe.router.second_expert={second}"), experts)
        for second in ("random", "all", "sampling")
        for experts in (2, EXPERTS)
    ),
    ("batch_priority", (*STILL, "moe.router.noise=0"), EXPERTS),
    ("smear", ("moe.router.drop_experts=0",), EXPERTS),
]


@pytest.mark.parametrize(("kind", "overrides", "experts"), DRAWN_OR_NOT)
def test_two_passes_of_an_update_differ_where_the_configuration_says_that_something_is_drawn(
    kind, overrides, experts
):
    layer = layer_of(kind, *overrides, experts=experts)
    differ = False
    # THOR's two draws can be one expert; dense_to_sparse begins with all experts.
    for step in range(0, 600, 100):
        here = context(SEQUENCES, LENGTH, training=True, step=step)
        stream = replace(here.forward_pass.random, pass_index=1)
        second = replace(here, forward_pass=replace(here.forward_pass, random=stream))
        one, other = (layer(tokens(), each)[0] for each in (here, second))
        differ |= not torch.allclose(one, other, rtol=1e-5, atol=1e-5)
    assert layer.spec.router.draws_in_training(experts) == differ
