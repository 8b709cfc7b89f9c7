"""Builds a model with its initial values in one process: for a notebook, a test or a tool.

`distribute/apply.py` does the same for a run, of which each rank keeps its part.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from moe_train.config.spec import ModelSpec
from moe_train.model.init import initial_value, initials
from moe_train.model.model import Model
from moe_train.model.transformer import build_on_meta
from moe_train.moe.layers.layer import moe_layers_of
from moe_train.moe.routing import TableRouter, Vocabulary
from moe_train.random import generator_for


def build(spec: ModelSpec, *, seed: int = 0, vocabulary: Vocabulary | None = None) -> Model:
    """Returns the model on the CPU; without a vocabulary, tables of routers count every token the same."""
    model = build_on_meta(spec)
    begins = initials(model, spec.init_scale)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(initial_value(seed, name, begins[name], tuple(parameter.shape)))
        for buffer in model.buffers():
            buffer.zero_()
    for router, table in tables(model, vocabulary or Vocabulary.without_text(spec.vocabulary_size), seed):
        router.table = table
    return model


def tables(model: Model, vocabulary: Vocabulary | None, seed: int) -> Iterator[tuple[TableRouter, Tensor]]:
    """Yields each router with a fixed table, and its table, on the CPU."""
    for name, layer in moe_layers_of(model):
        if isinstance(layer.router, TableRouter):
            assert vocabulary is not None, f"moe.router.kind={layer.spec.router.kind} needs the vocabulary"
            yield (
                layer.router,
                layer.router.make_table(vocabulary, generator_for(seed, f"{name}.router.table")),
            )
