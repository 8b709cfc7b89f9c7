"""Applies tensor parallelism by megatron-core's layers: every parameter is a plain tensor, as ZeRO flattens them.

What is cut, and where collectives stand, is as in distribute/tensor.py: by heads, hidden width and vocabulary, with or
without sequence parallelism. Megatron has no layers for tables of positions; they are plain parts of the whole tables.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from moe_train.distribute.boundary import Between, enter
from moe_train.engines.deepspeed_layers import Columns, CutScores, Embedding, Rows
from moe_train.model.attention import Attention, RelativeBias
from moe_train.model.feedforward import FeedForward
from moe_train.model.logits import VocabularyPart
from moe_train.model.model import Model
from moe_train.model.stack import Stack
from moe_train.model.transformer_xl import DistanceScores
from moe_train.parallel.axis import Axis
from moe_train.parallel.mesh import Mesh
from moe_train.parallel.sequences import Sequences


def cut_layers(model: Model, mesh: Mesh) -> None:
    """Cuts a model on the meta device down to this rank's part; config/tensor.py has checked that the degree fits."""
    tensor, sequences = mesh.tensor, Sequences(mesh.tensor if mesh.plan.sequence else None)
    # Attention and stacks see [B, S, D]; a feed-forward block sees rows, of which each has its part in any order.
    of_sequences, of_rows = Between(sequences, dim=1), Between(sequences, dim=0)
    with torch.device("meta"):
        for module in list(model.modules()):
            if isinstance(module, Attention):
                _replace(module, ("query", "key", "value"), "output", tensor, of_sequences)
            elif isinstance(module, FeedForward):
                _replace(module, ("w_in", "w_gate"), "w_out", tensor, of_rows)
            elif isinstance(module, DistanceScores):
                module.register_module("project", Columns(module.project, tensor))
                _cut(module, "content_bias", 0, tensor)
                _cut(module, "distance_bias", 0, tensor)
            elif isinstance(module, RelativeBias):
                _cut(module, "weight", 1, tensor)
            if isinstance(module, Model | Stack):
                module.sequences = sequences
        _cut_vocabulary(model, VocabularyPart(model.vocabulary.size, tensor), of_sequences)


def _replace(module: nn.Module, first: tuple[str, ...], last: str, tensor: Axis, states: Between) -> None:
    """Replaces the matrices that read a module's inputs, and the one that makes its result."""
    for name, matrix in list(module.named_children()):
        if isinstance(matrix, nn.Linear):
            assert name in (*first, last), name
            cut = Rows(matrix, tensor, states) if name == last else Columns(matrix, tensor)
            module.register_module(name, cut)
    assert tensor.devices is not None
    module.register_forward_pre_hook(partial(_share_inputs, tensor.devices, states))


def _share_inputs(
    devices: DeviceMesh, states: Between, module: nn.Module, inputs: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    """Marks inputs once for all matrices that read them; the second of attention is a bias, of this rank's heads."""
    return tuple(
        each if each is None or place == 1 else enter(each, devices, states)
        for place, each in enumerate(inputs)
    )


def _cut(module: nn.Module, name: str, dim: int, tensor: Axis) -> None:
    """Leaves this rank's part of a parameter along a dimension."""
    shape = list(module.get_parameter(name).shape)
    shape[dim] //= tensor.size
    module.register_parameter(name, nn.Parameter(torch.empty(shape)))


def _cut_vocabulary(model: Model, part: VocabularyPart, states: Between) -> None:
    """Cuts embedding and head by vocabulary; `clear_padding` writes zeros into the rows that fill up the last part."""
    width = model.embedding.embedding_dim
    model.vocabulary = part
    model.register_module("embedding", Embedding(width, part, states))
    model.register_module("scores", CutScores(width, part, states))
    if model.head is not None:
        model.head.weight = nn.Parameter(torch.empty(part.rows, width))
