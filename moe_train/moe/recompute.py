"""Runs parts of a layer so that the backward pass makes again what it needs, instead of keeping it.

`distribute/recompute.py` says which parts. A router is never asked twice: a tie may fall the other way, and loads would
count double. So a part that runs again is given its router's decision (`Decision`). What the router saves for its own
backward pass is kept, but for its input, which comes with the rest of the part.
Draws are functions of place (random.py), so no generator's state is kept.
T rows, D model width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

Run = Callable[..., Any]
"""Runs a part, which is the first argument, on the others."""


def kept(part: Callable[..., Any], *arguments: Any) -> Any:
    """Runs a part of a layer as it is: autograd keeps what the backward pass needs."""
    return part(*arguments)


def recomputed(part: Callable[..., Any], *arguments: Any) -> Any:
    """Runs a part of a layer, of which only the arguments are kept: the backward pass runs it again.

    Until the last tensor that it needs is there, which is the same place on all ranks, as they run the same program. So
    a last product or collective is not repeated.
    """
    if not torch.is_grad_enabled():
        return part(*arguments)
    return checkpoint(part, *arguments, use_reentrant=False, preserve_rng_state=False)


def recomputed_to_its_end(part: Callable[..., Any], *arguments: Any) -> Any:
    """Does the same for a part in which FSDP2 holds a module: its hooks must see the end of that."""
    with set_checkpoint_early_stop(False):
        return recomputed(part, *arguments)


class Decision:
    """Remembers what a router has decided in a part that may run again: an answer for the one MoE layer in it."""

    def __init__(self) -> None:
        self._answers: list[Any] = []

    def once(self, decide: Callable[..., Any], x: Tensor, *arguments: Any) -> Any:
        """Returns `decide(x, *arguments)`, asked the first time alone.

        What `decide` saves for its backward pass is kept, as it will not run again; but where that is `x`, it is taken
        from the part's next run.
        """
        again = _Again(x)
        if not self._answers:
            with saved_tensors_hooks(again.pack, again.unpack):
                self._answers.append(decide(x, *arguments))
        return self._answers[0]


class _Again:
    """Stands for a tensor that is there when the part around has run again."""

    def __init__(self, x: Tensor) -> None:
        node = _Saved.apply(x).grad_fn  # in both runs of the part, as these must save the same tensors
        self._node = node if x.numel() else None
        self._place = (x.untyped_storage()._cdata, x.dtype)
        self._made: list[Tensor] = []

    def pack(self, saved: Tensor) -> Any:
        """Returns the tensor, or how it lies in `x`, if it is a view of that or `x` itself."""
        if self._node is None or (saved.untyped_storage()._cdata, saved.dtype) != self._place:
            return saved
        return saved.shape, saved.stride(), saved.storage_offset()

    def unpack(self, packed: Any) -> Tensor:
        """Returns the tensor; the first call may run the part again."""
        if isinstance(packed, Tensor):
            return packed
        if not self._made:  # a checkpoint hands each tensor out once
            assert self._node is not None
            self._made.extend(self._node.saved_tensors)
        return self._made[0].as_strided(*packed)


class _Saved(torch.autograd.Function):
    """Saves a tensor for the backward pass, in which it has no part: its result is empty and goes nowhere."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.new_empty(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> None:
        return None
