"""The harm done on purpose comes at its batches, and at no others."""

import json
from types import SimpleNamespace

import pytest
import torch
from reproduction import poison
from tiny_model import global_batch, one_worker, share_of, tiny_recipe

from moe_train.config.registry import build
from moe_train.engines.native import NativeEngine

GLOBAL_BATCH = 4


class Engine:
    """Takes steps of gradient descent on w * x, unless a gradient is not finite."""

    def __init__(self, keeps_clean: bool = True):
        self.w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        self.parameters = {"w": self.w}
        self.recipe = SimpleNamespace(data=SimpleNamespace(global_batch=GLOBAL_BATCH))
        self.keeps_clean = keeps_clean

    def step(self, batches, number, stop_requested):
        (gradient,) = torch.autograd.grad(self.w.sum(), self.w)
        if gradient.isfinite().all() or not self.keeps_clean:
            self.w.data -= gradient
        return gradient

    def state(self):
        return {"model.w": SimpleNamespace(data=self.w)}


def _batches(number):
    first = number * GLOBAL_BATCH
    return [SimpleNamespace(sequence_ids=torch.arange(first, first + GLOBAL_BATCH))]


def test_one_update_has_a_gradient_that_is_not_a_number(tmp_path):
    step, engine = poison.with_nan(Engine.step, tmp_path), Engine()
    assert step(engine, _batches(0), poison.FIRST_BATCH - 1, False).tolist() == [1, 1]
    assert step(engine, _batches(0), poison.FIRST_BATCH, False).isnan().all()
    assert step(engine, _batches(0), poison.FIRST_BATCH + 1, False).tolist() == [1, 1]
    assert engine.w.tolist() == [-1, 0]
    assert poison.read_record(tmp_path) == {"bit_equal": True}


def test_an_update_that_changes_a_bit_is_seen(tmp_path):
    poison.with_nan(Engine.step, tmp_path)(Engine(keeps_clean=False), _batches(0), poison.FIRST_BATCH, False)
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
    step = poison.with_ascent(NativeEngine.step, tmp_path)
    as_it_is, turned = _change(NativeEngine.step, batch), _change(step, batch)
    assert any("experts" in name for name in turned)
    for name, change in turned.items():
        assert change.any(), name
        torch.testing.assert_close(change, sign * as_it_is[name], rtol=1e-4, atol=1e-7, msg=name)


def _native_engine():
    recipe = tiny_recipe("optim.lr=0.1", "optim.clip=null", "moe.router.jitter=0")
    return build("engine", recipe.engine, recipe=recipe, mesh=one_worker())


def _change(step, batch):
    """Of every parameter of a real engine with experts, by one update with that batch."""
    engine = _native_engine()
    before = {name: shard.data.clone() for name, shard in engine.shards.items()}
    step(engine, share_of(global_batch(engine.recipe, batch), 0, 1), 7, False)
    return {name: shard.data - before[name] for name, shard in engine.shards.items()}
