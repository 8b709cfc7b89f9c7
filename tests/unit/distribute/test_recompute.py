"""What runs again in the backward pass gives the same numbers, bit by bit, and asks no router a second time."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from tiny_model import global_batch, one_worker, share_of, tiny_recipe, vocabulary
from torch import Tensor, nn

from moe_train.moe.layers.layer import moe_layers_of
from moe_train.moe.routing import RouteContext, Routing
from moe_train.step.training_step import TrainingStep

PARTS = ("experts", "attention", "block")
ACCUMULATED = ("data.micro_batch=4", "model.dropout=0.1")
VARIANTS = [
    (*ACCUMULATED, "moe.router.z_coefficient=0.001", "moe.expert_dropout=0.2"),
    # It reads its input twice, so its gradient is a sum whose order counts.
    ("moe.router.kind=noisy_top_k", "moe.shared_experts=1", "moe.every=2"),
]
LAYERS, MICROBATCHES = 2, 2


def built(parts: str, *overrides: str) -> TrainingStep:
    """A training step with persistent gradients of experts, as one worker has them."""
    recipe = tiny_recipe(f"engine.recompute={parts}", *overrides)
    return TrainingStep.build(recipe, one_worker(), vocabulary(recipe))


def trained(training_step: TrainingStep) -> list[Tensor]:
    """Everything that two updates make: losses, norms, loads, gradients, parameters."""
    recipe, made = training_step.recipe, []
    for step in range(2):
        batches = share_of(global_batch(recipe, step), 0, 1, recipe.data.micro_batch)
        result = training_step.update(batches, step, False)
        made += [result.loss, torch.tensor(result.grad_norm), *result.losses.values()]
        made += [layer.load for layers in result.stats for layer in layers]
        made += [shard.data.grad.clone() for shard in training_step.engine.shards.values()]
    return [*made, *(shard.data for shard in training_step.engine.shards.values())]


@cache
def without(variant: tuple[str, ...]) -> list[Tensor]:
    """The numbers of a run in which nothing runs again."""
    return trained(built("none", *variant))


def assert_equal(numbers: list[Tensor], expected: list[Tensor]) -> None:
    """Bit by bit."""
    assert len(numbers) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(numbers, expected, strict=True))


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("variant", VARIANTS, ids=("accumulated", "noisy_top_k"))
def test_numbers_are_the_same_bit_by_bit(parts, variant):
    assert_equal(trained(built(parts, *variant)), without(variant))


class Fickle(nn.Module):
    """A router that sends every token elsewhere the second time it is asked about the same rows."""

    def __init__(self, router: nn.Module) -> None:
        super().__init__()
        self.router, self.asked = router, []

    def forward(self, x: Tensor, context: RouteContext) -> Routing:
        routing = self.router(x, context)
        if not torch.is_grad_enabled():  # a pass that sums up the losses of the whole batch beforehand
            return routing
        about = (context.forward_pass.step, *context.rows.sequence_ids.tolist())
        if about in self.asked:
            routing = replace(routing, expert_ids=(routing.expert_ids + 1) % routing.num_experts)
        self.asked.append(about)
        return routing


@pytest.mark.parametrize("parts", PARTS)
def test_a_router_that_would_answer_otherwise_is_not_asked_again(parts):
    training_step = built(parts, *ACCUMULATED)
    layers = [layer for _, layer in moe_layers_of(training_step.engine.model)]
    for layer in layers:
        layer.router = Fickle(layer.router)
    numbers = trained(training_step)
    assert [len(layer.router.asked) for layer in layers] == [2 * MICROBATCHES] * LAYERS
    assert_equal(numbers, without(ACCUMULATED))


@pytest.mark.parametrize("parts", PARTS)
def test_ties_fall_the_same_way(parts):
    def with_ties(training_step: TrainingStep) -> list[Tensor]:
        """All experts of all routers score the same."""
        for _, layer in moe_layers_of(training_step.engine.model):
            layer.router.weight.data.zero_()
        return trained(training_step)

    assert_equal(with_ties(built(parts)), with_ties(built("none")))
