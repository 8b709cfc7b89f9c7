"""Models without a run: the lines of docs/architecture.md, and the same values as a run's."""

import re
from pathlib import Path

import pytest
import torch
from tiny_model import tiny_recipe, tiny_transformer

from moe_train.config.resolve import spec_of
from moe_train.model.build import build
from moe_train.results import LOAD

PAGE = Path(__file__).parents[3] / "docs/architecture.md"


def test_the_lines_of_the_page_build_and_run_a_model():
    [code] = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(code.partition("\n\nspec = ")[2].splitlines()) == 3
    notebook: dict = {}
    exec(code, notebook)
    output = notebook["output"]
    assert output.logits.values.shape == (2, 128, 4096)
    assert output.logits.values.isfinite().all()
    [layer] = output.moe
    assert int(layer.counts[LOAD].sum()) == 2 * 128


@pytest.mark.parametrize("kind", ["switch", "hash", "deepseek"])
def test_a_model_without_a_run_has_the_values_of_one(kind):
    recipe = tiny_recipe(f"moe.router.kind={kind}", "seed=5")
    alone, of_run = build(spec_of(recipe), seed=5), tiny_transformer(recipe)
    assert alone.state_dict().keys() == of_run.state_dict().keys()
    for name, parameter in of_run.named_parameters():
        assert torch.equal(alone.get_parameter(name), parameter), name


def test_training_and_validation_are_told_apart_without_a_context():
    model = build(spec_of(tiny_recipe("model.dropout=0.5")))
    tokens = torch.arange(32).view(2, 16)
    trained, again = model.train()(tokens).logits.values, model(tokens).logits.values
    assert torch.equal(trained, again)
    assert not torch.equal(trained, model.eval()(tokens).logits.values)
