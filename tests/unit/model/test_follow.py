"""Which layers are reported as a pass goes through a model, forward and backward."""

import pytest
from tiny_model import global_batch, one_worker, tiny_recipe, vocabulary

from moe_train.model.follow import follow
from moe_train.step.training_step import TrainingStep

FORWARD = ["embedding", "layers.0", "layers.1", "scores"]


@pytest.mark.parametrize("recompute", ["none", "block"])
def test_layers_are_reported_in_the_order_of_a_pass_and_back(recompute: str) -> None:
    recipe = tiny_recipe(f"engine.recompute={recompute}")
    step, reached = TrainingStep.build(recipe, one_worker(), vocabulary(recipe)), []
    follow(step.engine.model, reached.append)
    followed = step.update([global_batch(recipe, 0)], 0, False)
    assert reached == [*FORWARD, *reversed(FORWARD)]
    plain = TrainingStep.build(recipe, one_worker(), vocabulary(recipe))
    unfollowed = plain.update([global_batch(recipe, 0)], 0, False)
    assert (followed.mean_loss, followed.grad_norm) == (unfollowed.mean_loss, unfollowed.grad_norm)


def test_stacks_are_told_apart() -> None:
    recipe = tiny_recipe("model.architecture=encoder_decoder", "objective.kind=span_corruption")
    step, reached = TrainingStep.build(recipe, one_worker(), vocabulary(recipe)), []
    follow(step.engine.model, reached.append)
    step.evaluate([global_batch(recipe, 0)], 0)
    assert reached == [
        *("embedding", "encoder.layers.0", "encoder.layers.1"),
        *("embedding", "decoder.layers.0", "decoder.layers.1", "scores"),
    ]
