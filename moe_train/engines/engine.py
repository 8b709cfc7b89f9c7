"""What a trainer asks of an engine: updates, validation, and a state that any layout can read."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from jaxtyping import Int
from torch import Tensor

from moe_train.checkpoint.layout import ShardedState
from moe_train.data.batch import Batch
from moe_train.results import StepResult


class Engine(Protocol):
    """Built as `Engine(config, recipe=, mesh=, vocabulary=)`. All methods but `state` are collective."""

    def step(self, batches: Sequence[Batch], step: int, stop_requested: bool) -> StepResult:
        """One update from this rank's microbatches; `step` counts the updates already made."""
        ...

    def evaluate(self, batches: Iterable[Batch], step: int) -> float:
        """Mean task loss over all ranks' batches after `step` updates, in nats per token, without any randomness."""
        ...

    def translate(self, batch: Batch, step: int) -> Int[Tensor, "B N"]:
        """A translation of every source of an encoder-decoder's batch, ended by `<eos>`, which fills the rest."""
        ...

    def state(self) -> ShardedState:
        """Parameters, buffers and optimizer state as local boxes of global tensors; loading writes into them."""
        ...
