"""Watches every operation that torch runs, real or on fake tensors, and lets counters see it.

One mode for all counters, because each mode on torch's stack costs time for every operation.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

Counter = Callable[[Any, Sequence[Any], dict[str, Any], Any], None]
"""Is called with an operation, its arguments, its keyword arguments and its result."""


class Watch(TorchDispatchMode):
    """Calls the counters after every operation on plain tensors."""

    def __init__(self, *counters: Counter):
        super().__init__()
        self.counters = counters

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return (
                NotImplemented  # DTensor first makes operations on local tensors of it, which come back here
            )
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        for counter in self.counters:
            counter(func, args, kwargs, result)
        return result


def overloads(namespace: str, *names: str) -> frozenset[Any]:
    """Returns every overload of the operations `namespace::name`."""
    packets = [getattr(getattr(torch.ops, namespace), name) for name in names]
    return frozenset(getattr(packet, overload) for packet in packets for overload in packet.overloads())
