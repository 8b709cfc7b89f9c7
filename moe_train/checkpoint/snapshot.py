"""Copies the state to the host, so that training can continue while a save is written.

The copy is all that a background save costs the training loop: one memcpy (from a GPU: one transfer) into buffers that
are reused from save to save, since fresh pages cost more than the copy itself.
"""

import dataclasses

import numpy as np
import torch
from torch import Tensor

from moe_train.checkpoint.layout import Shard, ShardedState, boxes_of, is_written
from moe_train.checkpoint.shard_file import bytes_of


def on_host(state: ShardedState) -> ShardedState:
    """Returns the state with its values on the host: CPU tensors themselves, others copied."""
    return {
        name: [dataclasses.replace(shard, data=shard.data.detach().cpu()) for shard in shards]
        for name, shards in state.items()
    }


class HostBuffers:
    """Keeps buffers for what `rank` writes. A snapshot is valid until the next one."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._buffers: dict[tuple[str, int], Tensor] = {}

    def snapshot(self, state: ShardedState) -> ShardedState:
        """Returns copies of all boxes this rank writes; a save does not read the others, which stay as they are."""
        copies = {
            name: [self._copy((name, index), shard) for index, shard in enumerate(shards)]
            for name, shards in state.items()
        }
        if any(shard.data.is_cuda for _, shard in boxes_of(state)):
            torch.cuda.synchronize()
        return copies

    def _copy(self, place: tuple[str, int], shard: Shard) -> Shard:
        if not is_written(shard):
            return shard
        data, buffer = shard.data.detach(), self._buffers.get(place)
        if buffer is None or buffer.shape != data.shape or buffer.dtype != data.dtype:
            buffer = self._buffers[place] = torch.empty(data.shape, dtype=data.dtype, pin_memory=data.is_cuda)
        if data.is_cuda or not data.is_contiguous():
            buffer.copy_(data, non_blocking=True)
        else:  # copy_ starts a team of threads per tensor, whose barriers cost more on busy cores
            np.copyto(bytes_of(buffer), bytes_of(data))
        return dataclasses.replace(shard, data=buffer)
