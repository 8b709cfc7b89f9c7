"""Draws uniform numbers by a hash, in plain torch, on any device. B streams of N numbers."""

import torch
from torch import Tensor


def uniform(low: Tensor, high: Tensor, count: int) -> Tensor:
    """Returns [B, N] float32 in [0, 1) from the streams' keys [B] int32: moe_uniform in csrc/interface.h."""
    places = torch.arange(count, dtype=torch.int32, device=low.device).mul(signed(0x9E3779B9))
    bits = mixed(places.unsqueeze(0) + low.unsqueeze(1), high.unsqueeze(1))
    return bits.bitwise_and_(0xFFFFFF).to(torch.float32).mul_(2.0**-24)


def mixed(bits: Tensor, key: Tensor) -> Tensor:
    """Hashes 32-bit integers (xor-shift and multiply, twice), adding `key` in between; in place on `bits`."""
    bits = bits.bitwise_xor_((bits >> 16).bitwise_and_(0xFFFF)).mul_(signed(0x7FEB352D))
    bits = bits.bitwise_xor_(key)
    bits = bits.bitwise_xor_((bits >> 15).bitwise_and_(0x1FFFF)).mul_(signed(0x846CA68B))
    return bits.bitwise_xor_((bits >> 16).bitwise_and_(0xFFFF))


def signed(word: int) -> int:
    """Returns a 32-bit word as the signed integer with the same bits."""
    word &= 0xFFFFFFFF
    return word - (1 << 32) if word >= 1 << 31 else word
