"""One update on one worker with the native engine, against torch's autograd and against arithmetic."""

import math
from dataclasses import replace

import pytest
import torch
from tiny_model import global_batch, one_worker, share_of, tiny_recipe

from moe_train.errors import TrainingError
from moe_train.step.training_step import TrainingStep


def training_step(*overrides: str) -> TrainingStep:
    recipe = tiny_recipe(*overrides)
    return TrainingStep.build(recipe, one_worker())


def copies(made: TrainingStep) -> dict[str, torch.Tensor]:
    return {name: shard.data.clone() for name, shard in made.engine.shards.items()}


def update(made: TrainingStep, step: int = 0):
    """One step on the whole batch; returns the change of every parameter and the result."""
    before = copies(made)
    batches = share_of(global_batch(made.recipe, step), 0, 1, made.recipe.data.micro_batch)
    result = made.update(batches, step, False)
    return {name: shard.data - before[name] for name, shard in made.engine.shards.items()}, result


def test_the_norm_counts_every_parameter_once():
    changes, result = update(training_step("optim.lr=1", "optim.clip=null"))
    expected = math.sqrt(sum(change.double().square().sum().item() for change in changes.values()))
    assert result.grad_norm == pytest.approx(expected, rel=1e-4)


def test_clipping_scales_the_whole_gradient_to_the_limit():
    free, result = update(training_step("optim.lr=1", "optim.clip=null"))
    clipped, same = update(training_step("optim.lr=1", "optim.clip=0.1"))
    assert result.grad_norm == same.grad_norm > 0.1
    for name, change in clipped.items():
        torch.testing.assert_close(change, free[name] * (0.1 / result.grad_norm), rtol=1e-3, atol=1e-6)


def test_a_norm_below_the_limit_is_left_alone():
    free, _ = update(training_step("optim.lr=1", "optim.clip=null"))
    unclipped, _ = update(training_step("optim.lr=1", "optim.clip=1000"))
    assert all(torch.equal(change, free[name]) for name, change in unclipped.items())


def test_accumulated_microbatches_make_the_update_of_the_whole_batch():
    whole, result = update(training_step("model.dropout=0.1"))
    pieces, accumulated = update(training_step("model.dropout=0.1", "data.micro_batch=2"))
    assert len(accumulated.stats) == 4
    assert float(accumulated.loss) == pytest.approx(float(result.loss), rel=1e-6)
    for name in result.losses:
        assert float(accumulated.losses[name]) == pytest.approx(float(result.losses[name]), rel=1e-5)
    for name, change in pieces.items():
        largest = float(whole[name].abs().max())
        torch.testing.assert_close(change, whole[name], rtol=0, atol=1e-5 * largest + 1e-7)


def test_the_total_holds_auxiliary_losses_but_the_reported_loss_does_not():
    _, without = update(training_step("moe.router.balance_coefficient=0"))
    _, with_balance = update(training_step("moe.router.balance_coefficient=10"))
    assert float(without.loss) == float(with_balance.loss)
    assert with_balance.grad_norm > 1.5 * without.grad_norm
    assert with_balance.losses.keys() == {"balance", "z"}


def test_gradients_of_the_last_step_do_not_leak_into_the_next():
    made = training_step("optim.lr=1e-30", "optim.clip=null", "moe.router.jitter=0")
    batches = share_of(global_batch(made.recipe, 0), 0, 1)
    norms = [made.update(batches, step, False).grad_norm for step in range(3)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)
    assert norms[0] == pytest.approx(norms[2], rel=1e-6)


def test_a_loss_that_is_not_finite_is_named_and_changes_nothing():
    made = training_step()
    with torch.no_grad():
        made.engine.shards["norm.weight"].data[3] = math.nan
    before = copies(made)
    with pytest.raises(TrainingError, match="grad_norm=nan at step 8: the loss or a gradient is not finite"):
        update(made, step=7)
    for name, shard in made.engine.shards.items():
        assert torch.equal(shard.data.nan_to_num(), before[name].nan_to_num()), name


def test_a_step_reports_what_it_did():
    made = training_step("optim.schedule.kind=linear", "optim.schedule.warmup_steps=4")
    _, result = update(made, step=1)
    assert (result.step, result.lr, result.tokens, result.stop) == (2, 1.5, 8 * 16, False)
    assert made.update(share_of(global_batch(made.recipe, 2), 0, 1), 2, True).stop


def test_validation_is_a_mean_over_tokens_and_changes_nothing():
    made = training_step("model.dropout=0.5")
    before, batch = copies(made), global_batch(made.recipe, 0)
    whole = made.evaluate([batch], 1)
    assert made.evaluate(share_of(batch, 0, 1, 2), 1) == pytest.approx(whole, rel=1e-6)
    assert made.evaluate([batch], 1) == whole
    assert all(torch.equal(shard.data, before[name]) for name, shard in made.engine.shards.items())


def test_validation_tells_routers_how_far_the_run_is(monkeypatch):
    made, seen = training_step("steps=8"), []
    forward = made.engine.model.forward
    monkeypatch.setattr(
        made.engine.model, "forward", lambda tokens, context: seen.append(context) or forward(tokens, context)
    )
    made.evaluate([global_batch(made.recipe, 0)], 6)
    assert [(context.training, context.forward_pass.progress) for context in seen] == [(False, 0.75)]


def test_the_state_names_parameters_and_moments_and_shares_their_storage():
    made = training_step("optim.kind=adamw")
    state = made.engine.state()
    name = "layers.0.feedforward.experts.w_in"
    assert {
        f"model.{name}",
        f"optim.exp_avg.{name}",
        f"optim.exp_avg_sq.{name}",
        f"optim.step.{name}",
    } <= state.keys()
    assert len(state) == 4 * len(made.engine.shards)
    (moment,), (updates,) = state[f"optim.exp_avg.{name}"], state[f"optim.step.{name}"]
    assert moment.is_expert
    update(made)
    assert moment.data.any()
    assert updates.data.item() == 1


def test_the_norm_counts_what_this_rank_owns_alone():
    made = training_step("optim.lr=1", "optim.clip=null")
    engine, name = made.engine, "embedding.weight"
    engine.shards[name] = replace(engine.shards[name], is_owner=False)
    changes, result = update(made)
    assert changes[name].any()
    owned = [change for other, change in changes.items() if other != name]
    expected = math.sqrt(sum(change.double().square().sum().item() for change in owned))
    assert result.grad_norm == pytest.approx(expected, rel=1e-4)
