"""Answers what a trace without values cannot know: every mask is true, every fraction is 1, and no loop goes on.

A mask selects edges here, of which `PlannedDispatcher` takes as many as are expected. A fraction is a loss or a norm.
Whole numbers are sizes, and are answered only while the model is built: there they are places in a tensor from which
rank 0 holds a part, so 0.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

aten = torch.ops.aten


class AssumedValues(TorchDispatchMode):
    """Stands above fake tensors, which refuse such operations."""

    def __init__(self) -> None:
        super().__init__()
        self.is_building = True

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if self.is_building and (_makes_meta(kwargs) or _has_meta(args)):
            return _without_storage(func, args, kwargs or {})
        if self.is_building and _has_values(args):
            with unset_fake_temporarily():
                return func(*args, **(kwargs or {}))
        if not args or not isinstance(args[0], FakeTensor):
            return func(*args, **(kwargs or {}))
        if func is aten.nonzero.default:
            return _all_places(args[0])
        if func is aten._local_scalar_dense.default and (self.is_building or not _is_whole(args[0].dtype)):
            return args[0].dtype.is_floating_point
        if func is aten.index.Tensor:
            tensor, indices = args
            args = (tensor, [_without_mask(index) for index in indices])
        return func(*args, **(kwargs or {}))


def _makes_meta(kwargs: dict[str, Any] | None) -> bool:
    device = (kwargs or {}).get("device")
    return device is not None and torch.device(device).type == "meta"


def _has_meta(args: Sequence[Any]) -> bool:
    """Returns whether an argument is on the meta device and not fake."""
    return any(
        isinstance(leaf, Tensor) and not isinstance(leaf, FakeTensor) and leaf.is_meta
        for leaf in tree_iter(args)
    )


def _has_values(args: Sequence[Any]) -> bool:
    """Returns whether all tensors are real, as torch's own tables of ranks are."""
    tensors = [leaf for leaf in tree_iter(args) if isinstance(leaf, Tensor)]
    return bool(tensors) and not any(isinstance(each, FakeTensor) or each.is_meta for each in tensors)


def _without_storage(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Runs an operation of a model on the meta device as a run does; memory for it is fake from the first on."""
    if func is aten.empty_like.default and not _makes_meta(kwargs):
        return torch.empty(args[0].shape, dtype=args[0].dtype, device=kwargs.get("device"))
    with unset_fake_temporarily():
        return func(*args, **kwargs)


def _all_places(mask: Tensor) -> Tensor:
    """Returns the places of a mask that is true everywhere, as `nonzero` lays them out."""
    return torch.zeros(mask.numel(), mask.ndim, dtype=torch.int64, device=mask.device)


def _without_mask(index: Tensor | None) -> Tensor | None:
    if index is None or index.dtype != torch.bool:
        return index
    return _all_places(index).squeeze(1)


def _is_whole(dtype: torch.dtype) -> bool:
    return not dtype.is_floating_point and dtype != torch.bool
