"""Counts what an engine's rank holds of parameters, gradients and optimizer state, real or fake."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from moe_train.engines.engine import Engine


class HeldGradients:
    """Sees what gradients an engine holds when it computes their norm: after that some engines free them."""

    def __init__(self, engine: Engine) -> None:
        self.bytes = 0
        self._engine, self._reduce = engine, engine.reduce
        engine.reduce = self  # type: ignore[method-assign]

    def __call__(self, values: Tensor) -> tuple[float, list[float]]:
        """Reduces as the engine does."""
        result = self._reduce(values)
        self.bytes = storage_bytes(self._gradients())
        return result

    def _gradients(self) -> Sequence[Tensor]:
        """Returns those of ranges of flattened parameters, if the engine has any, else those of parameters."""
        ranges, parameters = getattr(self._engine, "ranges", None), self._engine.model.parameters()
        if ranges is not None:
            return [grad for each in parameters if (grad := ranges.gradient(each)) is not None]
        shards = self._engine.shards.values()
        return [grad for shard in shards if (grad := shard.data.grad) is not None]


def parameter_bytes(engine: Engine) -> int:
    """Returns the bytes of the parameters that the model of this rank works on, or of its shards of them."""
    return sum(shard.data.nbytes for shard in engine.shards.values())


def optimizer_bytes(engine: Engine) -> int:
    """Returns the bytes of what an optimizer holds beside the weights: its state, and values of its own."""
    return storage_bytes(optimizer_state(engine))


def optimizer_state(engine: Engine) -> list[Tensor]:
    """Returns this rank's tensors of the optimizer's state, and those of weights that are not the model's."""
    state = engine.state()
    weights = {shard.data.untyped_storage()._cdata for shard in engine.shards.values()}
    own = [box.data for name in engine.shards for box in state[f"model.{name}"]]
    return [
        *(box.data for name, boxes in state.items() if name.startswith("optim.") for box in boxes),
        *(data for data in own if data.untyped_storage()._cdata not in weights),
    ]


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Returns the bytes of the storages of `tensors`, each once: several may be views of one."""
    storages: dict[int, torch.UntypedStorage] = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage
    return sum(storage.nbytes() for storage in storages.values())
