"""What a training step asks of an engine: a distributed model, its gradients, their norm, an update, and its state.

What a step means (passes, losses, what is skipped) is in `moe_train/step/`, once for all engines.
"""

from collections.abc import Iterator, Mapping
from typing import Protocol

from torch import Tensor

from moe_train.checkpoint.layout import Shard, ShardedState
from moe_train.model.model import Model


class Engine(Protocol):
    """Built as `Engine(config, recipe=, mesh=, vocabulary=)`.

    An update calls `clear_gradients`, `backward` for each microbatch, `reduce`, and `update` unless it is skipped.
    """

    @property
    def model(self) -> Model:
        """Returns the model as this rank runs it; a call is collective."""
        ...

    @property
    def shards(self) -> Mapping[str, Shard]:
        """Returns this rank's part of every parameter, by global name."""
        ...

    def clear_gradients(self) -> None:
        """Drops the gradients of the update before."""
        ...

    def backward(self, loss: Tensor, is_last: bool) -> None:
        """Adds the gradients of `loss`, a part of this rank's mean loss. Collective.

        With the `is_last` part of an update the gradients are those of the mean over ranks.
        """
        ...

    def reduce(self, values: Tensor) -> tuple[float, list[float]]:
        """Returns the global norm of the gradients, every element counted once, and sums of `values` over all ranks.

        Collective. Together, because an engine that computes the norm itself sends both in one reduction.
        """
        ...

    def gradients(self) -> Iterator[tuple[str, Shard]]:
        """Yields what `reduce` has summed, each element on one rank: the parameter's name and a box of its gradient."""
        ...

    def update(self, lr: float, norm: float) -> None:
        """Clips the gradients, whose global norm is `norm`, and updates the parameters. Collective."""
        ...

    def forget(self, name: str) -> None:
        """Resets the optimizer's state of one parameter to that before the first update.

        Its values were just written into `shards`.
        """
        ...

    def state(self) -> ShardedState:
        """Returns parameters, buffers and optimizer state as boxes of global tensors; loading writes into them."""
        ...

    def after_load(self) -> None:
        """Takes over what was loaded into the tensors of `state()`. Collective."""
        ...
