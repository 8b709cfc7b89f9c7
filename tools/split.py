"""Splits the time of a step into computing, dispatching rows, gathering and reducing, and waiting for others.

A mode sees every collective of torch and every operation of the one-sided exchange. It has all workers meet before
each, which is the waiting, and finishes it at once, which is the time that it takes. So nothing overlaps in a step that
is split, and what a worker lags behind is waiting of the others at the next collective.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from moe_train.planner.collectives import KIND_OF
from moe_train.planner.watch import overloads

PARTS = ("compute", "dispatch", "gather_reduce", "wait")


class Split(TorchDispatchMode):
    """Measures seconds by part, of all that runs inside of the block."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._exchanges = (
            overloads("moe_kernels", "dispatch", "send", "pull") if _has_kernels() else frozenset()
        )

    def __enter__(self) -> "Split":
        self._began = time.perf_counter()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        others = sum(self.seconds.values())
        self.seconds["compute"] = time.perf_counter() - self._began - others

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # it comes back with local tensors
        kind = "dispatch" if func in self._exchanges else KIND_OF.get(func)
        if kind is None:
            return func(*args, **(kwargs or {}))
        arrived = time.perf_counter()
        dist.barrier()
        met = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        _finish(result)
        self.seconds["wait"] += met - arrived
        part = "dispatch" if kind in ("dispatch", "all_to_all") else "gather_reduce"
        self.seconds[part] += time.perf_counter() - met
        return result


def _finish(result: Any) -> None:
    """Waits for a collective, whose work is the last of its results."""
    work = result[-1] if isinstance(result, tuple | list) else result
    if isinstance(work, torch.ScriptObject):
        dist.Work.unbox(work).wait()


def _has_kernels() -> bool:
    return hasattr(torch.ops.moe_kernels, "dispatch")
