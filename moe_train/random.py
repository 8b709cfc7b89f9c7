"""Draws random numbers as a function of where they are used: (seed, step, pass, site, sequence, element).

Nothing here has a state. A draw depends neither on the rank nor on how many draws came before, so every layout of
workers, every accumulation and every resume sees the same numbers. On CPU and CUDA the bits are the same too.
B sequences.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moe_kernels.ops.uniform import uniform as hashed_uniform
from moe_kernels.reference.uniform import mixed, signed

_LOW_32 = 0xFFFFFFFF


@dataclass(frozen=True)
class RandomStream:
    """Makes the draws of one training step."""

    seed: int
    step: int
    pass_index: int = 0
    """Which forward pass over the batch, for objectives that make several: each has draws of its own."""

    def uniform(self, site: str, sequence_ids: Int[Tensor, " B"], *shape: int) -> Float[Tensor, "B ..."]:
        """Returns uniform numbers in [0, 1) of shape [B, *shape]; `site` names the place in the model that draws."""
        low, high = self._keys(site, sequence_ids)
        count = 1
        for size in shape:
            count *= size
        return hashed_uniform(low, high, count).view(len(low), *shape)

    def uniform_of_batch(self, site: str, device: torch.device, *shape: int) -> Float[Tensor, "..."]:
        """Returns uniform numbers in [0, 1) of shape [*shape] that all sequences of the step share."""
        one = torch.zeros(1, dtype=torch.int64, device=device)
        return self.uniform(f"{site}.batch", one, *shape)[0]

    def _keys(
        self, site: str, sequence_ids: Int[Tensor, " B"]
    ) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"]]:
        """Returns two 32-bit keys for each sequence."""
        place = f"{site}/pass{self.pass_index}" if self.pass_index else site
        base = _digest(self.seed, self.step, place)
        keys = []
        for shift in (0, 32):
            word = signed((base >> shift) & _LOW_32)
            low, high = sequence_ids.to(torch.int32), (sequence_ids >> 31).to(torch.int32)
            keys.append(mixed(low + word, high ^ signed(0x85EBCA6B + shift)))
        return keys[0], keys[1]


@lru_cache(maxsize=1024)
def _digest(seed: int, step: int, site: str) -> int:
    """Returns 64 bits that two different (seed, step, site) hardly ever share."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{step}/{site}".encode(), digest_size=8).digest(), "little")


def generator_for(seed: int, name: str) -> torch.Generator:
    """Returns a CPU generator for what is drawn once, such as the initial value of a parameter called `name`."""
    return torch.Generator().manual_seed(_digest(seed, 0, name))
