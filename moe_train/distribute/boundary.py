"""Brings activations to the parts of a matrix that tensor ranks hold, and the parts of the result together again.

Between such matrices activations are whole on every rank, or cut along the sequence. One collective each way: with
whole ones forward behind the parts and backward before them, with cut ones in all four places.
"""

from dataclasses import dataclass

from jaxtyping import Float
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


def cut(whole: Float[Tensor, "..."], devices: DeviceMesh, between: Between) -> Float[Tensor, "..."]:
    """Returns this rank's share of activations that all ranks have whole. Its gradient is collective."""
    marked = DTensor.from_local(whole, devices, [Replicate()], run_check=False)
    return marked.redistribute(placements=[between.placement]).to_local()
