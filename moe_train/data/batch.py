"""A batch of token sequences. B sequences, S tokens."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One microbatch of this rank."""

    tokens: Int[Tensor, "B S"]
    targets: Int[Tensor, "B S"]
    """The next token of each."""
    sequence_ids: Int[Tensor, " B"]
    """Number of each sequence in the run's global order: what random draws depend on, on every layout."""

    def to(self, device: torch.device) -> "Batch":
        """The same batch on `device`."""
        return Batch(self.tokens.to(device), self.targets.to(device), self.sequence_ids.to(device))
