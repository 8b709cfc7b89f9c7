"""The native engine: torch FSDP2 for what all ranks share, expert parallelism for the experts.

Nothing here depends on the layout: the gradients that reach the norm are those of the mean loss over the global batch,
each element held by one rank.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from moe_train.checkpoint.layout import Shard, ShardedState, alone
from moe_train.config.kinds.engine import NativeEngineConfig
from moe_train.config.registry import build
from moe_train.config.resolve import spec_of
from moe_train.config.schema import Recipe
from moe_train.distribute.apply import distribute
from moe_train.distribute.shards import buffer_shards, local_part
from moe_train.distribute.tensor import partial_gradients
from moe_train.moe.routing import Vocabulary
from moe_train.optim.norm import norm_and_sums
from moe_train.optim.optimizer import set_rate_and_clip
from moe_train.optim.state import forget, sharded_state
from moe_train.parallel.axis import sum_together
from moe_train.parallel.mesh import Mesh


class NativeEngine:
    """See engine.py. fp32 weights and updates."""

    def __init__(
        self, config: NativeEngineConfig, *, recipe: Recipe, mesh: Mesh, vocabulary: Vocabulary | None = None
    ):
        self.mesh, self.clip = mesh, recipe.optim.clip or math.inf
        self.reduces_each = config.reduce_each_microbatch
        built = distribute(
            spec_of(recipe),
            mesh,
            seed=recipe.seed,
            engine=config,
            vocabulary=vocabulary,
        )
        self.model, self.shards, self.expert_gradients = built.model, built.shards, built.expert_gradients
        self.partial = partial_gradients(built.model)
        self.parameters = dict(self.model.named_parameters())
        self.locals = {name: shard.data for name, shard in self.shards.items()}
        self.optimizer: torch.optim.Optimizer = build("optim", recipe.optim, shards=self.shards, mesh=mesh)

    def clear_gradients(self) -> None:
        persistent = {id(tensor) for buffers in self.expert_gradients for tensor in buffers.tensors}
        for buffers in self.expert_gradients:
            buffers.reset()
        for parameter in self.parameters.values():
            if parameter.grad is not None and id(parameter.grad) not in persistent:
                parameter.grad = None

    def backward(self, loss: Tensor, is_last: bool) -> None:
        if isinstance(self.model, FSDPModule):
            self.model.set_requires_gradient_sync(is_last or self.reduces_each)
            # Copies can be summed over once, after all sums over parts.
            self.model.set_requires_all_reduce(is_last)
        loss.backward()

    def reduce(self, values: Tensor) -> tuple[float, list[float]]:
        self._hand_over_gradients()
        return norm_and_sums((box.data for _, box in self.gradients()), values, self.mesh.world)

    def gradients(self) -> Iterator[tuple[str, Shard]]:
        for name, shard in self.shards.items():
            if shard.is_owner and shard.data.grad is not None:
                yield name, replace(shard, data=shard.data.grad)

    def update(self, lr: float, norm: float) -> None:
        """Clips and updates in one pass over the gradients."""
        set_rate_and_clip(self.optimizer, lr, norm, self.clip, self.mesh.world.device)
        self.optimizer.step()

    def forget(self, name: str) -> None:
        forget(self.optimizer, self.shards[name])

    def state(self) -> ShardedState:
        is_main = self.mesh.world.is_main
        held = self.shards | buffer_shards(self.model, is_main)
        state = {f"model.{name}": shard for name, shard in held.items()}
        return {**alone(state), **sharded_state(self.optimizer, self.shards, is_main)}

    def after_load(self) -> None:
        """Nothing is left to do: the model works on the tensors that were loaded."""

    def _hand_over_gradients(self) -> None:
        """Gives the optimizer's local tensors the local part of the gradients."""
        for name, parameter in self.parameters.items():
            assert parameter.grad is not None, f"{name} has no gradient"
            grad, local = local_part(parameter.grad), self.locals[name]
            local.grad = grad if grad.shape == local.shape else grad[: len(local)]  # without rows of padding
        partial = [self.locals[name].grad for name in self.partial]
        sum_together([grad for grad in partial if grad is not None], self.mesh.tensor)
