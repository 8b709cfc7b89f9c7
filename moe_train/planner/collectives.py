"""Counts the collectives that a rank starts: how many of each kind on each group, and how many bytes they move.

The bytes of a collective are those of what the rank puts in or of what it gets out, whichever is more: all rows of an
exchange, the gathered tensor of a gather, the tensor to be reduced.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import _resolve_process_group
from torch.utils._pytree import tree_iter

from moe_train.planner.watch import overloads

KINDS = {
    "all_reduce": ("allreduce_", "allreduce_coalesced_"),
    "all_gather": (
        "_allgather_base_",
        "allgather_",
        "allgather_coalesced_",
        "allgather_into_tensor_coalesced_",
    ),
    "reduce_scatter": ("_reduce_scatter_base_", "reduce_scatter_", "reduce_scatter_tensor_coalesced_"),
    "all_to_all": ("alltoall_base_", "alltoall_"),
    "broadcast": ("broadcast_",),
    "reduce": ("reduce_",),
    "barrier": ("barrier",),
}
"""torch.distributed's own operations, by what they are called here."""
FUNCTIONAL_KINDS = {
    "all_reduce": ("all_reduce", "all_reduce_", "all_reduce_coalesced", "all_reduce_coalesced_"),
    "all_gather": ("all_gather_into_tensor", "all_gather_into_tensor_coalesced"),
    "reduce_scatter": ("reduce_scatter_tensor", "reduce_scatter_tensor_coalesced"),
    "all_to_all": ("all_to_all_single",),
    "broadcast": ("broadcast", "broadcast_"),
}
"""The same of functional collectives, which DTensor issues."""
KIND_OF = {
    operation: kind
    for namespace, kinds in (("c10d", KINDS), ("_c10d_functional", FUNCTIONAL_KINDS))
    for kind, names in kinds.items()
    for operation in overloads(namespace, *names)
}


class Collective(NamedTuple):
    """Names a kind of collective on a group of workers."""

    kind: str
    axis: str


@dataclass(frozen=True)
class Moved:
    """Holds numbers of collectives, and the bytes of all of a kind."""

    counts: Mapping[Collective, int] = field(default_factory=dict)
    bytes: Mapping[Collective, int] = field(default_factory=dict)

    def __add__(self, other: "Moved") -> "Moved":
        return Moved(_sum(self.counts, other.counts, 1), _sum(self.bytes, other.bytes, 1))

    def __sub__(self, other: "Moved") -> "Moved":
        return Moved(_sum(self.counts, other.counts, -1), _sum(self.bytes, other.bytes, -1))

    def rows(self) -> list[dict[str, Any]]:
        """Returns a row for each kind and axis, those with the most bytes first."""
        order = sorted(self.counts, key=lambda key: -self.bytes.get(key, 0))
        return [
            {"kind": key.kind, "axis": key.axis, "number": self.counts[key], "bytes": self.bytes.get(key, 0)}
            for key in order
        ]

    def __mul__(self, times: int) -> "Moved":
        return Moved(_sum({}, self.counts, times), _sum({}, self.bytes, times))


class Collectives:
    """Is a counter for `Watch`."""

    def __init__(self, groups: Mapping[str, dist.ProcessGroup]):
        """`groups` has the process groups of the mesh by the names of their axes."""
        self.axes = {str(group.group_name): name for name, group in groups.items()}
        self._counts: Counter[Collective] = Counter()
        self._bytes: Counter[Collective] = Counter()

    def __call__(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> None:
        """Counts the operation if it is a collective of several workers."""
        if (kind := KIND_OF.get(func)) is None:
            return
        name = _group_name((*args, *kwargs.values()))
        if name not in self.axes and _is_alone(name):
            return
        collective = Collective(kind, self.axes.get(name, name))
        self._counts[collective] += 1
        self._bytes[collective] += _larger_side(func, args, result)

    def take(self) -> Moved:
        """Returns what was counted since the last call."""
        moved = Moved(dict(self._counts), dict(self._bytes))
        self._counts.clear()
        self._bytes.clear()
        return moved


def _sum(one: Mapping[Collective, int], other: Mapping[Collective, int], times: int) -> dict[Collective, int]:
    summed = {key: one.get(key, 0) + times * other.get(key, 0) for key in (*one, *other)}
    return {key: number for key, number in summed.items() if number}


def _larger_side(func: Any, args: Sequence[Any], result: Any) -> int:
    """Returns the bytes of the larger side. c10d's operations take their outputs first, then their inputs."""
    sides = args[:2] if func.namespace == "c10d" else (args[0], result)
    return max(
        sum(leaf.numel() * leaf.element_size() for leaf in tree_iter(side) if isinstance(leaf, Tensor))
        for side in sides
    )


def _is_alone(name: str) -> bool:
    """Returns whether a group has one worker, as DeepSpeed makes them: nothing moves there."""
    return _resolve_process_group(name).size() == 1  # type: ignore[arg-type]  # a NewType of str


def _group_name(arguments: Sequence[Any]) -> str:
    """Returns the name of the process group among the arguments of a collective."""
    for argument in arguments:
        if isinstance(argument, torch.ScriptObject):
            return str(dist.ProcessGroup.unbox(argument).group_name)
        if isinstance(argument, dist.ProcessGroup):
            return str(argument.group_name)
    return next(str(argument) for argument in reversed(arguments) if isinstance(argument, str))
