"""Applies tensor parallelism: each rank of a tensor group holds a part of every matrix of a layer, and sees all tokens.

Attention is cut by heads, a dense feed-forward block and shared experts by hidden width, the embedding and the output
head by vocabulary; norms, learned positions and routers stay whole. A pair of matrices costs one all-reduce forward,
behind the second, and one backward, before the first (Megatron-LM, 1909.08053, sec. 3).

Between the parts that are cut, all ranks have the same activations, so the gradients of what is whole are complete and
equal on every rank, and nobody sums them. With sequence parallelism (2205.05198, sec. 4.2.2) ranks have different
positions there: an all-gather stands before each pair of matrices and a reduce-scatter behind it, and the gradients of
norms and learned positions are those of a rank's positions alone (`partial_gradients`).
"""

from functools import partial

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, parallelize_module

from moe_train.distribute.boundary import Between
from moe_train.distribute.shards import local_part
from moe_train.distribute.styles import CutEmbedding, CutLogits, CutWeights, SumOutputs, WholeInputs
from moe_train.model.attention import Attention, RelativeBias
from moe_train.model.feedforward import FeedForward
from moe_train.model.logits import VocabularyPart
from moe_train.model.model import Model
from moe_train.model.stack import Stack
from moe_train.parallel.mesh import Mesh
from moe_train.parallel.sequences import Sequences

Plan = dict[str, ParallelStyle]
"""Says how the modules of a module are cut, by name; "" is the module itself."""

# Parameters are on the meta device: no rank has values that the others would have to get.
_parallelize = partial(parallelize_module, src_data_rank=None)


def apply_tensor(model: Model, mesh: Mesh) -> None:
    """Cuts a model on the meta device down to this rank's part. config/layout.py has checked that the degree fits."""
    devices = mesh.tensor.devices
    if devices is None:
        return
    sequences = Sequences(mesh.tensor if mesh.plan.sequence else None)
    # Attention and stacks see [B, S, D]; a feed-forward block sees rows, of which each has its part in any order.
    of_sequences, of_rows = Between(sequences, dim=1), Between(sequences, dim=0)
    for module in list(model.modules()):
        if isinstance(module, Attention):
            _parallelize(module, devices, _attention(module, of_sequences))
        elif isinstance(module, FeedForward):
            _parallelize(module, devices, _feedforward(module, of_rows))
        elif isinstance(module, RelativeBias):
            _parallelize(module, devices, CutWeights(1))
        if isinstance(module, Model | Stack):
            module.sequences = sequences
    model.vocabulary = VocabularyPart(model.vocabulary.size, mesh.tensor)
    _cut_vocabulary(model, devices, of_sequences)


def partial_gradients(model: Model) -> list[str]:
    """Returns the parameters whose gradients the ranks of a tensor group have to sum up."""
    names = []
    for name, module in model.named_modules():
        if isinstance(module, Stack) and module.sequences.cut_by.size > 1:
            norms = [own for own, part in module.named_modules() if isinstance(part, nn.RMSNorm)]
            positions = [] if module.positions is None else ["positions"]
            names += [f"{name}.{own}.weight".lstrip(".") for own in (*norms, *positions)]
    return names


def _attention(module: Attention, states: Between) -> Plan:
    """Cuts by heads."""
    plan: Plan = {
        "": WholeInputs(states, None, states) if module.reads_memory else WholeInputs(states, None),
        "query": ColwiseParallel(),
        "key": ColwiseParallel(),
        "value": ColwiseParallel(),
        "output": SumOutputs(states),
    }
    if module.distances is not None:
        plan |= {"distances": CutWeights(0), "distances.project": ColwiseParallel()}
    return plan


def _feedforward(module: FeedForward, states: Between) -> Plan:
    """Cuts by hidden width."""
    plan: Plan = {
        "": WholeInputs(states),
        "w_in": ColwiseParallel(),
        "w_out": SumOutputs(states),
    }
    return plan if module.w_gate is None else plan | {"w_gate": ColwiseParallel()}


def _cut_vocabulary(model: Model, devices: DeviceMesh, states: Between) -> None:
    """Cuts embedding and head by vocabulary, after rows of padding have made it a multiple of the degree.

    These rows are in no box of `parameter_shards`, so no norm, optimizer or checkpoint sees them.
    """
    num_rows = model.vocabulary.rows * devices.size()
    for module in (model.embedding, model.head):
        if module is not None:
            module.weight = nn.Parameter(torch.empty(num_rows, module.weight.shape[1], device="meta"))
    _parallelize(model.embedding, devices, CutEmbedding(states))
    if model.head is not None:
        _parallelize(model.head, devices, CutWeights(0))
    _parallelize(model.scores, devices, CutLogits(model.vocabulary, states))


def clear_padding(model: Model, mesh: Mesh) -> None:
    """Writes zeros into embedding and head, of which `initial_value` then fills all rows but those of padding."""
    for module in (model.embedding, model.head):
        if mesh.tensor.size > 1 and module is not None:
            local_part(module.weight).zero_()
