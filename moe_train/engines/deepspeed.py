"""The DeepSpeed engine: its ZeRO sums gradients and cuts optimizer state; the model and its experts are ours.

DeepSpeed is asked for little: a backward pass, a sum, an update. The norm and the clip are ours at every stage, because
its own average over workers with different experts, or depend on the layout. The loss is scaled, and microbatches are
accumulated, by the training step. Read `deepspeed_runtime.py` for how it starts, and `deepspeed_ranges.py` for what a
rank holds in stages 1 and 2.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from moe_train.checkpoint.layout import Shard, ShardedState, alone
from moe_train.config.kinds.deepspeed import DeepSpeedEngineConfig
from moe_train.config.registry import build
from moe_train.config.resolve import spec_of
from moe_train.config.schema import Recipe
from moe_train.distribute.apply import distribute
from moe_train.distribute.shards import buffer_shards
from moe_train.engines.deepspeed_groups import Templates, grouped_optimizer
from moe_train.engines.deepspeed_ranges import Ranges
from moe_train.moe.routing import Vocabulary
from moe_train.optim.norm import norm_and_sums
from moe_train.optim.optimizer import set_rate_and_clip
from moe_train.optim.state import forget, sharded_state
from moe_train.parallel.axis import Sharding
from moe_train.parallel.mesh import Mesh


class DeepSpeedEngine:
    """See engine.py. fp32 weights and updates; every worker holds all weights but those of other experts."""

    def __init__(
        self,
        config: DeepSpeedEngineConfig,
        *,
        recipe: Recipe,
        mesh: Mesh,
        vocabulary: Vocabulary | None = None,
    ):
        mesh.world.introduce_to_deepspeed()
        # Not at the top: it imports DeepSpeed, which reads what the line above has set.
        from moe_train.engines import deepspeed_runtime as runtime

        # Whole parameters on every worker: as sharding in groups of one.
        mesh = replace(mesh, sharding=Sharding(copy=mesh.data), expert_sharding=Sharding(copy=mesh.replica))
        self.mesh, self.clip = mesh, recipe.optim.clip or math.inf
        built = distribute(spec_of(recipe), mesh, seed=recipe.seed, engine=config, vocabulary=vocabulary)
        self.model = built.model
        self.parameters = dict(self.model.named_parameters())
        # The parameters themselves, whose memory DeepSpeed replaces.
        self.shards = {
            name: replace(shard, data=self.parameters[name]) for name, shard in built.shards.items()
        }
        experts = [self.parameters[name] for name in self.shards if self._is_cut(name)]

        def make(shards: Mapping[str, Shard]) -> torch.optim.Optimizer:
            optimizer: torch.optim.Optimizer = build("optim", recipe.optim, shards=shards, mesh=mesh)
            return optimizer

        templates: Templates = []
        if config.stage == 0:
            self.optimizer = make(self.shards)
        else:
            group_name = runtime.expert_group_name(mesh) if experts else None
            self.optimizer, templates = grouped_optimizer(make, self.model, self.shards, group_name)
        settings = config.settings(recipe, mesh.data.size)
        self.runtime = runtime.start(self.model, experts, self.optimizer, settings, mesh)
        self.ranges = Ranges(self.runtime.optimizer, self.optimizer, templates) if config.stage else None

    def clear_gradients(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None

    def backward(self, loss: Tensor, is_last: bool) -> None:
        self.runtime.set_gradient_accumulation_boundary(is_last)
        self.runtime.backward(self.runtime(loss))

    def reduce(self, values: Tensor) -> tuple[float, list[float]]:
        return norm_and_sums(self._owned_gradients(), values, self.mesh.world)

    def update(self, lr: float, norm: float) -> None:
        """Updates by way of DeepSpeed, whose own clipping is off."""
        set_rate_and_clip(self.optimizer, lr, norm, self.clip, self.mesh.world.device)
        self.runtime.step()

    def forget(self, name: str) -> None:
        if self.ranges is None:
            forget(self.optimizer, self.shards[name])
        else:
            self.ranges.forget(self.parameters[name])

    def state(self) -> ShardedState:
        is_main = self.mesh.world.is_main
        buffers = {f"model.{name}": shard for name, shard in buffer_shards(self.model, is_main).items()}
        if self.ranges is not None:
            return {**alone(buffers), **self.ranges.state(self.parameters, self.shards, is_main)}
        parameters = {
            f"model.{name}": replace(shard, data=shard.data.detach()) for name, shard in self.shards.items()
        }
        return {**alone(parameters | buffers), **sharded_state(self.optimizer, self.shards, is_main)}

    def after_load(self) -> None:
        if self.ranges is not None:
            self.ranges.gather()

    def _is_cut(self, name: str) -> bool:
        """Returns whether a parameter has experts, or parts of them, of which other workers hold others."""
        return self.shards[name].is_expert and self.mesh.exchange.size > 1

    def _owned_gradients(self) -> Iterator[Tensor]:
        """Yields the summed gradients, each element on one rank."""
        if self.ranges is not None:
            yield from self.ranges.gradients()
            return
        for name, parameter in self.parameters.items():
            assert parameter.grad is not None, f"{name} has no gradient"
            if self.shards[name].is_owner:
                yield parameter.grad
