"""Computes a checksum per expert, by its global id, that does not depend on how the expert is cut into boxes.

It is a sum over elements, so boxes add up on any layout; each element's bits are weighted by its position, so that
exchanged experts, rows or columns change the sum. It guards against experts that are loaded under a wrong id; the
sha256 of the files guards against damage.
"""

# e experts of a box, n_k extent of its dimension k

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from moe_train.checkpoint.manifest import CHECKSUM_MASK

_INTEGERS = {
    1: (torch.uint8, np.uint8),
    2: (torch.int16, np.uint16),
    4: (torch.int32, np.uint32),
    8: (torch.int64, np.uint64),
}
_SPREAD = 0x9E3779B1  # an odd constant without a pattern, so that dimensions are not exchangeable


def expert_checksums(data: Tensor, offsets: Sequence[int]) -> list[int]:
    """Returns the checksum of each expert's part in the box `data` [e, ...] at `offsets`."""
    kind, unsigned = _INTEGERS[data.element_size()]
    bits = data.detach().cpu().contiguous().view(kind).numpy().view(unsigned)
    if bits.ndim == 1:
        return [int(value) & CHECKSUM_MASK for value in bits]
    total = np.zeros(bits.shape[0], dtype=np.uint64)
    for dim in range(1, bits.ndim):
        others = tuple(axis for axis in range(1, bits.ndim) if axis != dim)
        lines = bits.sum(axis=others, dtype=np.uint64)  # [e, n_dim], modulo 2**64
        total += (lines * _weights(dim, offsets[dim], bits.shape[dim])).sum(axis=1, dtype=np.uint64)
    return [int(value) & CHECKSUM_MASK for value in total]


def _weights(dim: int, offset: int, extent: int) -> np.ndarray:
    """Weighs each position along `dim`: odd along the first, even along others, so every element's weight is odd."""
    positions = np.arange(offset, offset + extent, dtype=np.uint64)
    if dim == 1:
        return positions * np.uint64(2) + np.uint64(1)
    return positions * np.uint64(2 * pow(_SPREAD, dim - 1, 1 << 62) & CHECKSUM_MASK)
