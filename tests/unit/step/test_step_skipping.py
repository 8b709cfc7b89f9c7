"""An update that is left out changes nothing, and nothing of it is left in the next one."""

import math

import pytest
import torch
from poisoned_run import same_bits
from tiny_model import global_batch, one_worker, share_of, tiny_recipe

from moe_train.step.training_step import TrainingStep

OPTIMIZERS = [
    ("optim.kind=adamw", "optim.lr=1e-2"),
    ("optim.kind=adafactor", "optim.factor_from=8", "optim.beta1=0.9"),
    ("optim.kind=sgd", "optim.lr=1", "optim.momentum=0.9"),
]
# Its biases follow the loads, and it has more experts than tokens reach.
DEEPSEEK = ("moe.router.kind=deepseek", "moe.router.k=1", "moe.capacity_factor=null")


class Run:
    """A training step, seen as the state of its engine."""

    def __init__(self, *overrides: str) -> None:
        recipe = tiny_recipe("stability.skip_non_finite=true", *overrides)
        self.training_step = TrainingStep.build(recipe, one_worker())

    def step(self, step: int):
        batches = share_of(global_batch(self.training_step.recipe, step), 0, 1)
        return self.training_step.update(batches, step, False)

    def spoiled_step(self, step: int, value: float, from_forward: bool):
        """A step in which the last norm's output, or only its gradient, is not finite for one token."""

        def spoil(tensor: torch.Tensor) -> torch.Tensor:
            spoiled = tensor.clone()
            spoiled[-1, 0] = value
            return spoiled

        def hook(module, inputs, output):
            if from_forward:
                return spoil(output)
            output.register_hook(spoil)
            return None

        handle = self.training_step.engine.model.norm.register_forward_hook(hook)
        result = self.step(step)
        handle.remove()
        return result

    def bits(self) -> dict[str, torch.Tensor]:
        return {name: shard.data.clone() for name, (shard,) in self.training_step.engine.state().items()}


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: optimizer[0])
@pytest.mark.parametrize("router", [(), DEEPSEEK], ids=("switch", "deepseek"))
def test_parameters_moments_and_biases_are_bit_equal_before_and_after(optimizer, router):
    run, spared = Run(*optimizer, *router), Run(*optimizer, *router)
    assert not run.step(0).is_skipped
    spared.step(0)
    before = run.bits()
    result = run.spoiled_step(1, math.nan, from_forward=True)
    assert result.is_skipped
    assert math.isnan(result.mean_loss)
    result = run.spoiled_step(2, math.inf, from_forward=False)
    assert result.is_skipped
    assert math.isfinite(result.mean_loss)
    assert not math.isfinite(result.grad_norm)
    assert same_bits(run.bits(), before)

    assert run.step(3).grad_norm == spared.step(3).grad_norm
    assert not same_bits(run.bits(), before)
    assert same_bits(run.bits(), spared.bits())
