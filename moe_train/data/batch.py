"""Defines a batch of token sequences. B sequences, S tokens, R tokens of a source."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

IGNORED = -100
"""Target at a position where nothing is predicted; torch's cross-entropy ignores it."""


@dataclass(frozen=True)
class Batch:
    """Holds one microbatch of this rank."""

    tokens: Int[Tensor, "B S"]
    """What the model reads; in an encoder-decoder, what the decoder reads."""
    targets: Int[Tensor, "B S"]
    """What to predict at each position; IGNORED where nothing is predicted."""
    sequence_ids: Int[Tensor, " B"]
    """Number of each sequence in the run's global order; random draws depend on it, so no layout changes them."""
    is_real: Bool[Tensor, "B S"] | None = None
    """False for padding in `tokens`, which comes after the real tokens; None without padding."""
    source: Int[Tensor, "B R"] | None = None
    """What the encoder reads; the decoder attends to its output."""
    source_is_real: Bool[Tensor, "B R"] | None = None
    """False for padding in `source`."""
    targets_per_sequence: float | None = None
    """Mean number of targets per sequence in the update's global batch; None if all sequences have the same number."""

    def to(self, device: torch.device) -> "Batch":
        """Returns the same batch on `device`."""
        return self.each(lambda tensor: tensor.to(device))

    def sequences(self, first: int, end: int) -> "Batch":
        """Returns the sequences from `first` up to but not including `end`."""
        return self.each(lambda tensor: tensor[first:end])

    def each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """Returns the batch with `change` applied to every tensor."""
        tensors = {
            field.name: change(value)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **tensors)  # type: ignore[arg-type]

    @property
    def num_targets(self) -> int:
        """Returns the number of positions where something is predicted."""
        return int((self.targets != IGNORED).sum())
