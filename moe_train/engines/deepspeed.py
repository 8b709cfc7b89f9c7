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
from torch import Tensor, nn

from moe_train.checkpoint.layout import Shard, ShardedState, alone
from moe_train.config.kinds.deepspeed import DeepSpeedEngineConfig
from moe_train.config.registry import build
from moe_train.config.resolve import spec_of
from moe_train.config.schema import Recipe
from moe_train.distribute.apply import CutLayers, distribute
from moe_train.distribute.shards import buffer_shards, without_padding
from moe_train.distribute.tensor import partial_gradients
from moe_train.engines.deepspeed_groups import Templates, grouped_optimizer
from moe_train.engines.deepspeed_ranges import Ranges
from moe_train.moe.routing import Vocabulary
from moe_train.optim.norm import norm_and_sums
from moe_train.optim.optimizer import set_rate_and_clip
from moe_train.optim.state import forget, sharded_state
from moe_train.parallel.axis import Sharding, sum_together
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
        built = distribute(
            spec_of(recipe),
            mesh,
            seed=recipe.seed,
            engine=config,
            vocabulary=vocabulary,
            cut_layers=_cut_layers(mesh),
        )
        self.model = built.model
        self.parameters = dict(self.model.named_parameters())
        # The parameters themselves, whose memory DeepSpeed replaces, with the rows that pad a vocabulary.
        self.padded = {
            name: replace(shard, data=self.parameters[name]) for name, shard in built.shards.items()
        }
        self.partial = [self.parameters[name] for name in partial_gradients(self.model)]
        experts = [
            self.parameters[name]
            for name, shard in self.padded.items()
            if shard.is_expert and mesh.plan.sums_experts_apart
        ]

        def make(shards: Mapping[str, Shard]) -> torch.optim.Optimizer:
            optimizer: torch.optim.Optimizer = build("optim", recipe.optim, shards=shards, mesh=mesh)
            return optimizer

        templates: Templates = []
        if config.stage == 0:
            self.optimizer = make(self.padded)
        else:
            group_name = runtime.expert_group_name(mesh) if experts else None
            self.optimizer, templates = grouped_optimizer(make, self.model, self.padded, group_name)
        settings = config.settings(recipe, mesh.data.size)
        self.runtime = runtime.start(self.model, experts, self.optimizer, settings, mesh)
        self.ranges = Ranges(self.runtime.optimizer, self.optimizer, templates) if config.stage else None

    @property
    def shards(self) -> Mapping[str, Shard]:
        return {name: without_padding(shard) for name, shard in self.padded.items()}

    def clear_gradients(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None

    def backward(self, loss: Tensor, is_last: bool) -> None:
        self.runtime.set_gradient_accumulation_boundary(is_last)
        self.runtime.backward(self.runtime(loss))

    def reduce(self, values: Tensor) -> tuple[float, list[float]]:
        partial = [self._gradient(parameter) for parameter in self.partial]
        sum_together([grad for grad in partial if grad is not None], self.mesh.tensor)
        return norm_and_sums(self._owned_gradients(), values, self.mesh.world)

    def gradients(self) -> Iterator[tuple[str, Shard]]:
        for name, shard in self.shards.items():
            parameter = self.parameters[name]
            if self.ranges is not None:
                if self._is_owned_by_tensor_rank(shard):
                    yield from ((name, box) for box in self.ranges.gradient_boxes(parameter, shard))
            elif shard.is_owner and parameter.grad is not None:
                yield name, replace(shard, data=parameter.grad[: len(shard.data)])

    def update(self, lr: float, norm: float) -> None:
        """Updates by way of DeepSpeed, whose own clipping is off."""
        set_rate_and_clip(self.optimizer, lr, norm, self.clip, self.mesh.world.device)
        self.runtime.step()

    def forget(self, name: str) -> None:
        if self.ranges is None:
            forget(self.optimizer, self.padded[name])
        else:
            self.ranges.forget(self.parameters[name])

    def state(self) -> ShardedState:
        is_main = self.mesh.world.is_main
        buffers = {f"model.{name}": shard for name, shard in buffer_shards(self.model, is_main).items()}
        if self.ranges is not None:
            # Workers that share gradients hold ranges, not copies: what is left are the copies of a tensor group.
            held = {
                name: replace(shard, is_owner=self._is_owned_by_tensor_rank(shard))
                for name, shard in self.shards.items()
            }
            return {**alone(buffers), **self.ranges.state(self.parameters, held, is_main)}
        parameters = {
            f"model.{name}": replace(shard, data=shard.data.detach()) for name, shard in self.shards.items()
        }
        optimizer = {
            name: tuple(map(without_padding, boxes))
            for name, boxes in sharded_state(self.optimizer, self.padded, is_main).items()
        }
        return {**alone(parameters | buffers), **optimizer}

    def after_load(self) -> None:
        if self.ranges is not None:
            self.ranges.gather()

    def _is_owned_by_tensor_rank(self, shard: Shard) -> bool:
        """Returns whether no worker before this one in its tensor group has the same part of a parameter."""
        is_cut = tuple(shard.data.shape) != shard.global_shape
        return shard.is_expert or is_cut or self.mesh.tensor.is_first

    def _gradient(self, parameter: nn.Parameter) -> Tensor | None:
        """Returns what this rank has of a summed gradient: all of it, or with stages 1 and 2 its range's part."""
        return parameter.grad if self.ranges is None else self.ranges.gradient(parameter)

    def _owned_gradients(self) -> Iterator[Tensor]:
        """Yields the summed gradients, each element on one rank."""
        for name, shard in self.padded.items():
            grad = self._gradient(self.parameters[name])
            assert grad is not None or self.ranges is not None, f"{name} has no gradient"
            is_owner = shard.is_owner if self.ranges is None else self._is_owned_by_tensor_rank(shard)
            if grad is not None and is_owner:
                yield grad


def _cut_layers(mesh: Mesh) -> CutLayers | None:
    """Returns what cuts the layers on a tensor group; without one megatron-core is not imported."""
    if mesh.tensor.size == 1:
        return None
    from moe_train.engines.deepspeed_tensor import cut_layers

    return cut_layers
