"""The harm done on purpose comes at its batches, and at no others."""

import json
from types import SimpleNamespace

import pytest
import torch
from reproduction import poison
from tiny_model import global_batch, one_worker, share_of, tiny_recipe

from moe_train.step.training_step import TrainingStep

GLOBAL_BATCH = 4


class Step:
    """Makes updates of gradient descent on w * x, unless a gradient is not finite; it is its own engine."""

    def __init__(self, keeps_clean: bool = True):
        self.w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        self.parameters = {"w": self.w}
        self.recipe = SimpleNamespace(data=SimpleNamespace(global_batch=GLOBAL_BATCH))
        self.keeps_clean = keeps_clean
        self.engine = self

    def update(self, batches, number, stop_requested):
        (gradient,) = torch.autograd.grad(self.w.sum(), self.w)
        if gradient.isfinite().all() or not self.keeps_clean:
            self.w.data -= gradient
        return gradient

    def state(self):
        return {"model.w": [SimpleNamespace(data=self.w)]}


def _batches(number):
    first = number * GLOBAL_BATCH
    return [SimpleNamespace(sequence_ids=torch.arange(first, first + GLOBAL_BATCH))]


def test_one_update_has_a_gradient_that_is_not_a_number(tmp_path):
    update, step = poison.with_nan(Step.update, tmp_path), Step()
    assert update(step, _batches(0), poison.FIRST_BATCH - 1, False).tolist() == [1, 1]
    assert update(step, _batches(0), poison.FIRST_BATCH, False).isnan().all()
    assert update(step, _batches(0), poison.FIRST_BATCH + 1, False).tolist() == [1, 1]
    assert step.w.tolist() == [-1, 0]
    assert poison.read_record(tmp_path) == {"bit_equal": True}


def test_an_update_that_changes_a_bit_is_seen(tmp_path):
    poison.with_nan(Step.update, tmp_path)(Step(keeps_clean=False), _batches(0), poison.FIRST_BATCH, False)
    assert json.loads((tmp_path / poison.RECORD).read_text()) == {"bit_equal": False}
    assert poison.read_record(tmp_path / "elsewhere") == {}


@pytest.mark.parametrize(
    ("batch", "sign"),
    [
        (poison.FIRST_BATCH - 1, 1),
        (poison.FIRST_BATCH, -1),
        (poison.FIRST_BATCH + poison.NUM_ASCENTS - 1, -1),
        (poison.FIRST_BATCH + poison.NUM_ASCENTS, 1),
    ],
)
def test_the_wrong_sign_belongs_to_the_batches_whatever_the_update(tmp_path, batch, sign):
    update = poison.with_ascent(TrainingStep.update, tmp_path)
    as_it_is, turned = _change(TrainingStep.update, batch), _change(update, batch)
    assert any("experts" in name for name in turned)
    for name, change in turned.items():
        assert change.any(), name
        torch.testing.assert_close(change, sign * as_it_is[name], rtol=1e-4, atol=1e-7, msg=name)


def _training_step():
    recipe = tiny_recipe("optim.lr=0.1", "optim.clip=null", "moe.router.jitter=0")
    return TrainingStep.build(recipe, one_worker())


def _change(update, batch):
    """Returns the change of every parameter of a model with experts, by one update with that batch."""
    training_step = _training_step()
    engine = training_step.engine
    before = {name: shard.data.clone() for name, shard in engine.shards.items()}
    update(training_step, share_of(global_batch(training_step.recipe, batch), 0, 1), 7, False)
    return {name: shard.data - before[name] for name, shard in engine.shards.items()}
