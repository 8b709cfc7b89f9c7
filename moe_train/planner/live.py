"""Counts the bytes of live tensors: of what torch has made and not freed yet, real or fake.

Not the process's memory: an allocator keeps more than is in use, and a fake tensor takes none.
"""

import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_iter


class LiveBytes:
    """Is a counter for `Watch` that follows every storage from its first use until it is freed."""

    def __init__(self) -> None:
        self.now = 0
        self.peak = 0
        self._sizes: dict[int, int] = {}
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __call__(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> None:
        """Takes note of the result's storages."""
        self.add(leaf for leaf in tree_iter(result) if isinstance(leaf, Tensor))

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Takes note of tensors, whether they were seen before or not."""
        for tensor in tensors:
            has_bytes = tensor.layout == torch.strided and tensor.device.type != "meta"
            if has_bytes and not isinstance(tensor, DTensor):
                self._add(tensor.untyped_storage())

    def restart_peak(self) -> None:
        """Forgets the peak so far."""
        self.peak = self.now

    @contextmanager
    def following_resizes(self) -> Iterator[None]:
        """Sees storages that change their size, which no operation tells: FSDP2 frees gathered weights that way."""
        original = torch.UntypedStorage.resize_

        def resize(storage: torch.UntypedStorage, size: int) -> Any:
            changed = original(storage, size)
            self._add(storage)
            return changed

        torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            torch.UntypedStorage.resize_ = original  # type: ignore[method-assign]

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        known = self._sizes.get(key)
        if known == size:
            return
        if known is None:
            self._alive[key] = weakref.ref(storage, lambda _: self._forget(key))
        self._sizes[key] = size
        self.now += size - (known or 0)
        self.peak = max(self.peak, self.now)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)
        del self._alive[key]
