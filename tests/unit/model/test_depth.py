"""Blocks that see a part of the rows, by kinds of depth that only tests have, against slow ways to say the same."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from tiny_model import context, global_batch, normal, tiny_recipe, tiny_transformer, with_padding
from torch import Tensor

from moe_train.config.schema import Recipe
from moe_train.model.depth import FullDepth, Part
from moe_train.model.stack import Stack
from moe_train.moe.routing import RouteContext

LENGTH = 16
THREE = ("model.num_layers=3", "data.global_batch=4", "data.sequence_length=16")
STILL = ("moe.router.jitter=0", "moe.capacity_factor=null", "moe.eval_capacity_factor=null")
DRAWING = ("moe.router.jitter=0.3", "model.dropout=0.3", "moe.capacity_factor=0.5", "moe.min_capacity=1")
KEPT = torch.rand(4, LENGTH, generator=torch.Generator().manual_seed(3)) < 0.4
KEPT[2] = False  # of one sequence nothing
FEWER = KEPT & (torch.rand(4, LENGTH, generator=torch.Generator().manual_seed(4)) < 0.5)


class Chosen:
    """Sends chosen places alone through some blocks: {first block: (last block, places)}."""

    def __init__(self, parts: dict[int, tuple[int, Tensor]]):
        self.parts = parts

    def before(self, layer: int, x: Tensor, context: RouteContext) -> Part | None:
        if layer not in self.parts:
            return None
        last, places = self.parts[layer]
        return Part.of(x, context.rows, context.rows.take(places).nonzero().squeeze(1), last)


def stack_of(recipe: Recipe) -> Stack:
    """The recipe's only stack, or its decoder, with weights large enough for attention to matter."""
    model = tiny_transformer(recipe)
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.add_(normal(*parameter.shape, seed=index), alpha=0.1)
    return getattr(model, "decoder", model)


def gradients(stack: Stack, x: Tensor, states: Tensor, stats) -> dict[str, Tensor]:
    """Of a loss of the states and of the MoE layers' losses."""
    stack.zero_grad()
    x.grad = None
    weights = normal(*states.shape, seed=9)
    ((states * weights).sum() + sum(sum(layer.losses.values()) for layer in stats)).backward()
    named = {name: weight.grad for name, weight in stack.named_parameters() if weight.grad is not None}
    return {"x": x.grad, **named}


def assert_same(
    stack: Stack, x: Tensor, slow: Callable[[], tuple[Tensor, list]], about: RouteContext, **memory
):
    output = stack.run(x, about, **memory)
    found = gradients(stack, x, *output)
    states, stats = slow()
    expected = gradients(stack, x, states, stats)
    torch.testing.assert_close(output.states, states)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        largest = float(gradient.abs().max())
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5 * largest + 1e-7)
    for layer, of_slow in zip(output.moe, stats, strict=True):
        assert torch.equal(layer.load, of_slow.load)
        assert int(layer.counts["dropped"]) == int(of_slow.counts["dropped"])


def hidden_places(stack: Stack, visible: Tensor) -> Tensor:
    """The bias of all rows on the keys at `visible` places, written out."""
    bias = (
        torch.zeros(1, 1, LENGTH, LENGTH)
        if stack.relative_bias is None
        else stack.relative_bias(LENGTH)[None]
    )
    bias = bias.masked_fill(~visible[:, None, None], -1e9)
    later = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    return bias.masked_fill(later, -torch.inf) if stack.is_causal else bias


def masked(
    stack: Stack, x: Tensor, about: RouteContext, through: list[Tensor | None], **memory
) -> tuple[Tensor, list]:
    """Every block works on all rows, and what it makes of rows that do not go through is thrown away."""
    if stack.positions is not None:
        x = x + stack.positions.weight
    if about.training and stack.dropout:
        x = x * (about.uniform(stack.site, x.shape[2]).view_as(x) >= stack.dropout) / (1 - stack.dropout)
    rows, stats = x.flatten(0, 1), []
    for block, places in zip(stack.layers, through, strict=True):
        if places is None:
            rows, layer_stats = block(rows, stack._bias(about.rows), about, **memory)
        else:
            bias, padded = hidden_places(stack, places), with_padding(about, places)
            after, layer_stats = block(rows, bias, padded, **memory)
            rows = torch.where(places.flatten().unsqueeze(1), after, rows)
        stats += [] if layer_stats is None else [layer_stats]
    return stack.norm(rows).view_as(x), stats


@pytest.mark.parametrize(
    "architecture", [(), ("model.architecture=encoder", "objective.kind=masked")], ids=str
)
def test_a_block_on_a_part_of_the_rows_is_that_block_on_shortened_sequences(architecture):
    """With learned positions, which stand in the embeddings, a block knows of no others."""
    stack = stack_of(tiny_recipe(*THREE, *STILL, *architecture, "model.positions=learned", "moe.every=0"))
    x, about = normal(4, LENGTH, 32).requires_grad_(), context(4, LENGTH)
    stack.depth = Chosen({1: (1, KEPT)})

    def shortened() -> tuple[Tensor, list]:
        rows = (x + stack.positions.weight).flatten(0, 1)
        first, _ = stack.layers[0](rows, None, about)
        sequences = list(first.view_as(x))
        for number, places in enumerate(KEPT):
            kept = places.nonzero().squeeze(1)
            alone = context(1, len(kept), first=number)
            after, _ = stack.layers[1](sequences[number][kept], None, alone)
            sequences[number] = sequences[number].index_copy(0, kept, after)
        last, _ = stack.layers[2](torch.cat(sequences), None, about)
        return stack.norm(last).view_as(x), []

    assert_same(stack, x, shortened, about)


@pytest.mark.parametrize(
    "overrides",
    [
        *(
            (f"model.positions={positions}",)
            for positions in ("rotary", "learned", "relative", "transformer_xl")
        ),
        ("model.architecture=encoder", "objective.kind=masked"),
        ("model.architecture=encoder", "objective.kind=masked", "model.positions=relative"),
        ("moe.shared_experts=1", "moe.expert_dropout=0.3"),
        ("moe.group_sequences=2",),
    ],
    ids=" ".join,
)
def test_rows_have_the_positions_the_capacity_and_the_draws_of_the_full_pass(overrides):
    stack = stack_of(tiny_recipe(*THREE, *DRAWING, *overrides))
    x, about = normal(4, LENGTH, 32).requires_grad_(), context(4, LENGTH, training=True, step=5)
    stack.depth = Chosen({1: (1, KEPT)})
    assert_same(stack, x, lambda: masked(stack, x, about, [None, KEPT, None]), about)


def test_rows_that_left_come_back_behind_the_last_block_also_out_of_a_part_of_a_part():
    stack = stack_of(tiny_recipe(*THREE, *DRAWING, "moe.every=1"))
    x, about = normal(4, LENGTH, 32).requires_grad_(), context(4, LENGTH, training=True, step=5)
    stack.depth = Chosen({0: (2, KEPT), 1: (1, FEWER)})
    assert_same(stack, x, lambda: masked(stack, x, about, [KEPT, FEWER, KEPT]), about)


def test_a_part_of_a_decoder_reads_the_encoder():
    spans = ("model.architecture=encoder_decoder", "objective.kind=span_corruption", "objective.sentinels=4")
    stack = stack_of(tiny_recipe(*THREE, *DRAWING, *spans))
    x, about = normal(4, LENGTH, 32).requires_grad_(), context(4, LENGTH, training=True)
    memory = {"memory": normal(4, 7, 32, seed=5), "memory_bias": normal(4, 1, 1, 7, seed=6)}
    stack.depth = Chosen({1: (1, KEPT)})
    assert_same(stack, x, lambda: masked(stack, x, about, [None, KEPT, None], **memory), about, **memory)


def test_a_block_without_any_row_is_left_out():
    stack = stack_of(tiny_recipe(*THREE, *STILL, "moe.every=2"))
    x, about = normal(4, LENGTH, 32), context(4, LENGTH)
    stack.depth = Chosen({1: (1, torch.zeros_like(KEPT))})
    output = stack.run(x, about)
    (stats,) = output.moe
    assert not stats.load.any()
    stack.depth, stack.layers = Chosen({}), stack.layers[::2]
    torch.testing.assert_close(output.states, stack.run(x, about).states)


def test_parts_that_do_not_end_inside_each_other_are_an_error():
    stack = stack_of(tiny_recipe(*THREE, "moe.every=0"))
    stack.depth = Chosen({0: (1, KEPT), 1: (2, FEWER)})
    with pytest.raises(AssertionError, match="a part ends inside"):
        stack.run(normal(4, LENGTH, 32), context(4, LENGTH))


def test_a_recipe_has_full_depth_and_its_model_learns_nothing_of_it():
    recipe = tiny_recipe()
    assert recipe.model.depth.kind == "full"
    model, batch = tiny_transformer(recipe), global_batch(recipe, 0)
    assert isinstance(model.depth, FullDepth)
    assert not any("depth" in name for name in model.state_dict())
    about = context(*batch.tokens.shape)
    every = torch.ones_like(batch.tokens, dtype=torch.bool)
    expected = model(batch.tokens, about).logits.values
    model.depth = Chosen({0: (1, every)})
    torch.testing.assert_close(model(batch.tokens, replace(about)).logits.values, expected)
