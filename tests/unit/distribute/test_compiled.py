"""What cannot be compiled runs as it is and says why once.

What can be is in tests/distributed/test_layouts_compiled.py.
"""

import logging

import pytest
import torch
from tiny_model import global_batch, one_worker, tiny_recipe, vocabulary

from moe_train.config.kinds.engine import NativeEngineConfig
from moe_train.config.layout import plan_of
from moe_train.config.resolve import uncompiled
from moe_train.distribute import compiled
from moe_train.distribute.compiled import Compiled, apply_compile, compiled_losses
from moe_train.layout.text import layout
from moe_train.step.training_step import TrainingStep


@pytest.fixture
def without_generator(monkeypatch):
    """Traces parts, and generates no code."""
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")


def built(*overrides: str) -> TrainingStep:
    recipe = tiny_recipe("moe.every=2", *overrides)
    return TrainingStep.build(recipe, one_worker(), vocabulary(recipe))


def test_without_a_compiler_nothing_is_compiled_and_one_line_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "g++"))
    with caplog.at_level(logging.WARNING):
        training_step = built("engine.compile=all")
    assert not any(isinstance(module.forward, Compiled) for module in training_step.engine.model.modules())
    assert training_step.passes.training_loss == training_step.objective.training_loss
    (record,) = caplog.records
    assert record.message.startswith(
        "engine.compile: without attention, feed-forward blocks, norms, residuals, losses: no C++ compiler was "
        "found on "
    )
    assert record.message.endswith("; install g++, or name one in CXX")


def test_a_part_that_cannot_be_compiled_runs_as_it_is_and_says_why_once(without_generator, caplog):
    def losses(passes, batch):
        torch._dynamo.graph_break()
        return passes

    fallen = compiled_losses(losses, one_worker(), NativeEngineConfig(compile="all"))
    with caplog.at_level(logging.WARNING):
        batch = global_batch(tiny_recipe(), 0)
        assert [fallen(number, batch) for number in (1, 2, 3)] == [1, 2, 3]
    (record,) = caplog.records
    assert record.message.startswith("engine.compile: without losses: Call to `torch._dynamo.graph_break()`")


def test_blocks_with_rows_of_varying_number_have_only_attention_compiled(without_generator, caplog):
    model = built().engine.model
    with caplog.at_level(logging.WARNING):
        apply_compile(model, one_worker(), NativeEngineConfig(compile="dense"), rows_vary=True)
    (record,) = caplog.records
    assert record.message == (
        "engine.compile: without feed-forward blocks: the number of rows of a block depends on the step"
    )
    found = {type(module) for module in model.modules() if isinstance(module.forward, Compiled)}
    assert found == {compiled.MODULES["attention"]}


def test_parameters_keep_their_names_and_validation_runs_uncompiled(without_generator):
    plain, fast = built(), built("engine.compile=all")
    assert plain.engine.shards.keys() == fast.engine.shards.keys()
    batches = [global_batch(plain.recipe, 0)]
    before = torch._dynamo.utils.counters["frames"]["total"]
    assert plain.evaluate(batches, 0) == fast.evaluate(batches, 0)
    assert torch._dynamo.utils.counters["frames"]["total"] == before


DENSE = "attention, feed-forward blocks"
CUT = "losses, as the logits are cut by vocabulary, and workers sum between the operations"
INSIDE = "as megatron-core's layers sum over workers inside"


@pytest.mark.parametrize(
    ("overrides", "lines"),
    [
        ((), []),
        (("engine.compile=dense",), [f"compiled in training: {DENSE}"]),
        (("engine.compile=all",), [f"compiled in training: {DENSE}, norms, residuals, losses"]),
        (
            ("engine.compile=all", "parallel.tensor=2"),
            [f"compiled in training: {DENSE}, norms, residuals", f"not compiled: {CUT}"],
        ),
        (
            ("engine.compile=all", "parallel.tensor=2", "engine.kind=deepspeed"),
            [
                "compiled in training: norms, residuals",
                *(f"not compiled: {name}, {INSIDE}" for name in DENSE.split(", ")),
                f"not compiled: {CUT}",
            ],
        ),
    ],
)
def test_show_says_what_is_compiled(overrides, lines):
    recipe = tiny_recipe(*overrides)
    drawn = layout(recipe, plan_of(recipe.parallel), None)
    assert [line.strip() for line in drawn if "compiled" in line] == lines
    assert uncompiled(recipe).engine.compile == "none"
