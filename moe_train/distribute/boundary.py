"""Brings activations to the parts of a matrix that tensor ranks hold, and the parts of the result together again.

Between such matrices activations are whole on every rank, or cut along the sequence. One collective each way: with
whole ones forward behind the parts and backward before them, with cut ones in all four places.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

from moe_train.parallel.sequences import Sequences


@dataclass(frozen=True)
class Between:
    """Says how activations lie between the parts of a layer that are cut."""

    sequences: Sequences
    dim: int
    """Along which sequences are cut."""

    @property
    def placement(self) -> Placement:
        """Returns where activations lie in this pass: whole on every rank, or cut."""
        return Shard(self.dim) if self.sequences.are_cut else Replicate()


def enter(x: Float[Tensor, "..."], devices: DeviceMesh, between: Between) -> Float[Tensor, "..."]:
    """Returns activations whole, for every rank's part of a matrix. Their gradients are summed. Collective."""
    shared = DTensor.from_local(x, devices, [between.placement], run_check=False)
    return shared.redistribute(placements=[Replicate()]).to_local(grad_placements=[Partial()])


def leave(parts: Float[Tensor, "..."], devices: DeviceMesh, between: Between) -> Float[Tensor, "..."]:
    """Returns the sum of all ranks' parts, or this rank's share of it. Collective."""
    summed = DTensor.from_local(parts, devices, [Partial()], run_check=False)
    return summed.redistribute(placements=[between.placement]).to_local()


def look_up(tokens: Int[Tensor, "B S"], weight: Float[Tensor, "V D"], rank: int) -> Float[Tensor, "B S D"]:
    """Returns the vectors of those tokens that are among the V of this rank, and zeros for all others."""
    rows = tokens - rank * len(weight)
    is_elsewhere = (rows < 0) | (rows >= len(weight))
    own = F.embedding(rows.clamp(0, len(weight) - 1), weight)
    return own.masked_fill(is_elsewhere.unsqueeze(-1), 0.0)
