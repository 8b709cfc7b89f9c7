"""Starts DeepSpeed under our model: it gets our process groups, compiles nothing, and sees only the loss.

Importing this imports DeepSpeed, which reads the environment as it does: `World.introduce_to_deepspeed` comes before.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed import ops
from deepspeed.moe.layer import MoE
from deepspeed.runtime.engine import DeepSpeedEngine as Runtime
from deepspeed.utils import groups
from torch import Tensor, nn

from moe_train.parallel.axis import Axis
from moe_train.parallel.mesh import Mesh


def expert_group_name(mesh: Mesh) -> str:
    """Returns the name of the optimizer's group of experts, from which DeepSpeed reads the expert degree."""
    return f"ep_size_{mesh.exchange.size}"


def start(
    model: nn.Module,
    experts: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    settings: Mapping[str, Any],
    mesh: Mesh,
) -> Runtime:
    """Returns DeepSpeed's engine over `model`, whose parameters `optimizer` has in groups. Collective.

    `experts` are those parameters that other workers of the exchange have others of.
    """
    # The only op that it would compile is an all-reduce for inference on CPUs, which takes minutes and a compiler.
    ops.__compatible_ops__ = {}
    alone = dist.new_group([mesh.world.rank], use_local_synchronization=True)
    for parameter in experts:
        # DeepSpeed's two marks of a parameter that is not summed over all workers.
        parameter.allreduce, parameter.group_name = False, expert_group_name(mesh)  # type: ignore[attr-defined]
    trained = TrainedModel(model, ExpertGroups(mesh, alone) if experts else None)
    runtime, *_ = deepspeed.initialize(
        model=trained, optimizer=optimizer, config=dict(settings), mpu=Groups(mesh, alone)
    )
    return runtime


class TrainedModel(nn.Module):
    """Is the model as DeepSpeed sees it: a module with parameters, whose forward pass returns the loss.

    The model itself has several entry points and outputs; its passes run outside, and `runtime(loss)` only tells
    DeepSpeed that a backward pass begins at that loss.
    """

    def __init__(self, model: nn.Module, experts: "ExpertGroups | None") -> None:
        super().__init__()
        self.model, self.experts = model, experts

    def forward(self, loss: Tensor) -> Tensor:
        """Returns the loss that the model has computed."""
        return loss


class ExpertGroups(MoE):
    """Tells DeepSpeed which workers hold the same experts. It looks for MoE layers by this class; ours are none."""

    def __init__(self, mesh: Mesh, alone: dist.ProcessGroup) -> None:
        nn.Module.__init__(self)
        self.mesh, self.alone = mesh, alone
        self.num_experts = mesh.exchange.size
        """DeepSpeed collects it for its own checkpoints, which are never written."""

    def set_deepspeed_parallelism(self, use_data_before_expert_parallel_: bool = False) -> None:
        """Hands over our groups; DeepSpeed calls this before it makes its own."""
        name = expert_group_name(self.mesh)
        groups._get_expert_parallel_group_dict()[name] = _group(self.mesh.exchange, self.alone)
        groups._get_expert_data_parallel_group_dict()[name] = _group(self.mesh.replica, self.alone)


class Groups:
    """Answers DeepSpeed's questions about the workers, as Megatron's `mpu` does."""

    def __init__(self, mesh: Mesh, alone: dist.ProcessGroup) -> None:
        self.mesh, self.alone = mesh, alone

    def get_data_parallel_group(self) -> dist.ProcessGroup:
        """Returns the workers that read different shares of a batch."""
        return _group(self.mesh.data, self.alone)

    def get_data_parallel_world_size(self) -> int:
        return self.mesh.data.size

    def get_data_parallel_rank(self) -> int:
        return self.mesh.data.rank

    def get_model_parallel_group(self) -> dist.ProcessGroup:
        """Returns the workers that share the weights of a layer."""
        return _group(self.mesh.tensor, self.alone)

    def get_model_parallel_world_size(self) -> int:
        return self.mesh.tensor.size

    def get_model_parallel_rank(self) -> int:
        return self.mesh.tensor.rank


def _group(axis: Axis, alone: dist.ProcessGroup) -> dist.ProcessGroup:
    """Returns the group of an axis; DeepSpeed wants one of a single worker too."""
    return axis.group or alone
