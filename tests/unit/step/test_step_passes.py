"""Updates of objectives that make two passes over a batch."""

from collections.abc import Callable

import pytest
import torch
from tiny_model import flops_per_token, global_batch, one_worker, share_of, tiny_recipe

from moe_train.data.batch import Batch
from moe_train.step.training_step import TrainingStep

PLAIN = (
    "moe.router.jitter=0",
    "moe.capacity_factor=null",
    "moe.eval_capacity_factor=null",
    "optim.clip=null",
)
TWICE = ("objective.kind=consistency", "objective.label_smoothing=0")
THOR = (
    "moe.router.kind=thor",
    "objective.kind=consistency",
    "moe.capacity_factor=null",
    "moe.eval_capacity_factor=null",
)


def training_step(*overrides: str) -> TrainingStep:
    recipe = tiny_recipe(*overrides)
    return TrainingStep.build(recipe, one_worker())


def update(made: TrainingStep, step: int = 0, change: Callable[[Batch], Batch] = lambda batch: batch):
    """One step on the whole batch, as `change` makes it; returns the gradient of every parameter and the result."""
    gradients = {}
    hook = made.engine.optimizer.register_step_pre_hook(
        lambda *_: gradients.update({name: local.grad.clone() for name, local in made.engine.locals.items()})
    )
    batches = share_of(change(global_batch(made.recipe, step)), 0, 1, made.recipe.data.micro_batch)
    result = made.update(batches, step, False)
    hook.remove()
    return gradients, result


@pytest.mark.parametrize("alpha", [0, 5])
def test_two_equal_passes_make_twice_the_gradient_of_one(alpha):
    """Without anything random the divergence is 0 and so is its gradient, whatever alpha."""
    once, result = update(training_step(*PLAIN))
    twice, doubled = update(training_step(*PLAIN, *TWICE, f"objective.alpha={alpha}"))
    assert float(doubled.loss) == pytest.approx(float(result.loss), rel=1e-6)
    assert float(doubled.losses["consistency"]) == 0
    assert float(doubled.losses["balance"]) == pytest.approx(float(result.losses["balance"]), rel=1e-6)
    for name, gradient in twice.items():
        torch.testing.assert_close(gradient, 2 * once[name], rtol=1e-4, atol=1e-6)


def test_every_pass_is_counted():
    _, result = update(training_step(*PLAIN, *TWICE))
    recipe = tiny_recipe(*PLAIN)
    assert (result.passes, result.tokens, len(result.stats)) == (2, 8 * 16, 2)
    assert sum(int(of_pass[0].load.sum()) for of_pass in result.stats) == 2 * result.tokens
    assert flops_per_token(tiny_recipe(*PLAIN, *TWICE)) == 2 * flops_per_token(recipe)


def test_passes_differ_in_their_dropout_masks():
    _, result = update(training_step(*PLAIN, *TWICE, "model.dropout=0.2"))
    assert float(result.losses["consistency"]) > 1e-4


def test_thor_with_one_expert_and_no_dropout_agrees_with_itself():
    _, alone = update(training_step(*THOR, "moe.num_experts=1"))
    assert float(alone.losses["consistency"]) == 0


def test_thor_moves_only_the_experts_it_drew():
    made = training_step(*THOR)
    gradients, result = update(made)
    assert float(result.losses["consistency"]) > 0
    for layer in range(2):
        loads = sum(of_pass[layer].load for of_pass in result.stats)
        moved = gradients[f"layers.{layer}.feedforward.experts.w_in"].flatten(1).abs().amax(1) > 0
        assert torch.equal(moved, loads > 0)
        assert 1 <= int(moved.sum()) <= 2


def test_accumulated_microbatches_of_thor_make_the_update_of_the_whole_batch():
    whole, result = update(training_step(*THOR, "model.dropout=0.1"))
    pieces, accumulated = update(training_step(*THOR, "model.dropout=0.1", "data.micro_batch=2"))
    assert len(accumulated.stats) == 2 * 4
    for name, loss in result.losses.items():
        assert float(accumulated.losses[name]) == pytest.approx(float(loss), rel=1e-5)
    for name, gradient in pieces.items():
        largest = float(whole[name].abs().max())
        torch.testing.assert_close(gradient, whole[name], rtol=0, atol=1e-5 * largest + 1e-7)


def test_validation_makes_one_pass():
    made, seen = training_step(*THOR, "moe.router.inference=ensemble"), []
    forward = made.engine.model.forward

    def watched(tokens, context):
        seen.append(context.forward_pass.random.pass_index)
        return forward(tokens, context)

    made.engine.model.forward = watched
    made.evaluate([global_batch(made.recipe, 0)], 1)
    assert seen == [0]
