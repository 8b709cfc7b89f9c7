"""Reads and writes what a rank holds in ZeRO's stages 1 and 2: a range of each group's flattened parameters.

A rank has the fp32 values and the optimizer's state of its range, and, after the last backward pass of an update, the
summed gradients of it. The whole parameters, with which the model works, are gathered from the ranges by each update.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from moe_train.checkpoint.fragments import fragment_shards
from moe_train.checkpoint.layout import Shard, ShardedState
from moe_train.engines.deepspeed_groups import Templates, begin_state


class Ranges:
    """Reads and writes this rank's ranges in DeepSpeed's ZeRO optimizer."""

    def __init__(self, zero: Any, optimizer: torch.optim.Optimizer, templates: Templates) -> None:
        """`zero` is DeepSpeed's optimizer around `optimizer`, whose groups it has made into one flat tensor each."""
        self.zero, self.optimizer = zero, optimizer
        begin_state(optimizer, templates)
        self._group_of = {
            id(parameter): index for index, group in enumerate(zero.bit16_groups) for parameter in group
        }

    def gradient(self, parameter: nn.Parameter) -> Tensor | None:
        """Returns the gradient of a parameter's elements in this rank's range; None if there are none."""
        if self._held(parameter) is None:
            return None
        of_group = self.zero.averaged_gradients[self._group_of[id(parameter)]]
        gradient: Tensor = of_group[parameter._index_in_param_group]  # type: ignore[attr-defined]
        return gradient

    def gradient_boxes(self, parameter: nn.Parameter, shard: Shard) -> tuple[Shard, ...]:
        """Returns what `gradient` does as boxes of the global tensor, of which the whole parameter is `shard`."""
        gradient, held = self.gradient(parameter), self._held(parameter)
        if gradient is None or held is None or held.first >= shard.data.numel():
            return ()
        values = gradient.flatten()[: shard.data.numel() - held.first]
        return fragment_shards(shard, held.first, values, is_owner=True)

    def forget(self, parameter: nn.Parameter) -> None:
        """Takes over the values of a parameter that were written from outside, and resets its optimizer state."""
        held = self._held(parameter)
        if held is not None:
            parameter._hp_mapping.update_hp()  # type: ignore[attr-defined]
        for value in self.optimizer.state[self._flat(parameter)].values():
            if value.ndim == 0:
                value.zero_()
            elif held is not None:
                held.of(value).zero_()

    def state(
        self, parameters: Mapping[str, nn.Parameter], shards: Mapping[str, Shard], is_main: bool
    ) -> ShardedState:
        """Returns values and optimizer state of this rank's part of each parameter, as boxes of global tensors.

        `shards` say which box of the global tensor a parameter is, and whether its workers' ranges own it.
        """
        state: dict[str, tuple[Shard, ...]] = {}
        for name, parameter in parameters.items():
            held, flat, shard = self._held(parameter), self._flat(parameter), shards[name]
            tensors = {f"model.{name}": flat.detach()}
            tensors |= {f"optim.{key}.{name}": value for key, value in self.optimizer.state[flat].items()}
            for key, tensor in tensors.items():
                if tensor.ndim == 0:
                    state[key] = (Shard(tensor, (), (), is_owner=is_main),)
                elif held is None or held.first >= shard.data.numel():
                    state[key] = ()
                else:
                    # Rows that pad a vocabulary are the last elements of the parameter, and in no box.
                    values = held.of(tensor)[: shard.data.numel() - held.first]
                    state[key] = fragment_shards(shard, held.first, values, shard.is_owner)
        return state

    def gather(self) -> None:
        """Makes the whole parameters what the ranges are. Collective."""
        self.zero.update_lp_params()

    def _flat(self, parameter: nn.Parameter) -> Tensor:
        (flat,) = self.optimizer.param_groups[self._group_of[id(parameter)]]["params"]
        return flat

    def _held(self, parameter: nn.Parameter) -> "_Fragment | None":
        """Returns where this rank's range has elements of a parameter, if anywhere."""
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return None
        place = mapping.hp_fragment_address
        return _Fragment(mapping.lp_fragment_address.start, place.start, place.numel)


class _Fragment(NamedTuple):
    """Holds the place of a parameter's elements in this rank's range."""

    first: int
    """The first of them, in the flattened parameter."""
    start: int
    """Its place in the range."""
    size: int

    def of(self, range_: Tensor) -> Tensor:
        """Returns the elements out of a tensor that has one for each of the range."""
        return range_.narrow(0, self.start, self.size)
