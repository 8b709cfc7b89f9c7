"""Says which tokens the rows of a layer's input are, so that a layer can be given a part of them.

A place is a token's in the batch: b * S + s for position s of sequence b. All that must not depend on which rows came
along goes by places: routing groups and their capacity, the sets of balance losses, draws, and the numbers of tokens.
A row that is absent counts as padding does: it takes no slot and has no part in losses. A group keeps its capacity,
which counts places, so what an expert accepts of a row cannot shrink with the rows around it.
Full rows have every place in order. Nothing is indexed then: laying them out and taking them back are views.
With sequence parallelism each worker of a tensor group has a part of every sequence: rows that are full for this part,
and know those of the whole sequences. Draws, biases and routing go by the whole ones.
B sequences, S tokens of each, T rows.
"""

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from moe_train.parallel.axis import Axis


@dataclass(frozen=True)
class Rows:
    """Describes the rows of one rank's microbatch that a layer sees."""

    sequence_ids: Int[Tensor, " B"]
    """Number of each sequence in the run's global order, which draws depend on."""
    values: Int[Tensor, "B S"]
    """Vocabulary ids of all tokens, also of those without a row."""
    is_real: Bool[Tensor, "B S"] | None = None
    """False for padding, which comes after the real tokens of its sequence; None where there is none."""
    places: Int[Tensor, " T"] | None = None
    """Of each row, ascending; None: the rows are full."""
    whole: "Rows | None" = None
    """The rows of whole sequences, of which these are a part; None: these are of whole sequences."""
    first: int = 0
    """Position of the first token of each sequence in the whole one."""
    workers: Axis = field(default_factory=Axis)
    """Have one part each."""

    @property
    def is_full(self) -> bool:
        """Returns whether every place has a row."""
        return self.places is None

    @property
    def length(self) -> int:
        """Returns the number of places of a sequence."""
        return self.values.shape[1]

    @property
    def of_whole_sequences(self) -> "Rows":
        """Returns the rows of whole sequences of which these are a part, or these."""
        return self if self.whole is None else self.whole

    @property
    def real(self) -> Bool[Tensor, " T"] | None:
        """Returns a mask that is False for rows of padding; None where there is none."""
        return None if self.is_real is None else self.take(self.is_real)

    @property
    def num_real(self) -> Int[Tensor, ""] | int:
        """Returns the number of rows without padding."""
        if (real := self.real) is not None:
            return real.sum()
        return self.values.numel() if self.places is None else len(self.places)

    @property
    def occupied(self) -> Bool[Tensor, "B S"] | None:
        """Returns a mask of the places where a real token has a row; None: everywhere."""
        if self.places is None:
            return self.is_real
        has_row = torch.zeros_like(self.values, dtype=torch.bool)
        has_row.view(-1)[self.places] = True
        return has_row if self.is_real is None else has_row & self.is_real

    def take(self, laid_out: Shaped[Tensor, "B S ..."]) -> Shaped[Tensor, "T ..."]:
        """Selects the rows' values from the values of all places."""
        flat = laid_out.flatten(0, 1)
        return flat if self.places is None else flat[self.places]

    def lay_out(self, rows: Shaped[Tensor, "T ..."]) -> Shaped[Tensor, "B S ..."]:
        """Lays the rows' values out at their places; zeros at places without a row."""
        shape = (*self.values.shape, *rows.shape[1:])
        if self.places is None:
            return rows.view(shape)
        flat = rows.new_zeros(self.values.numel(), *rows.shape[1:])
        return flat.index_copy(0, self.places, rows).view(shape)

    def lay_out_groups(self, rows: Shaped[Tensor, "T ..."], sequences: int) -> Shaped[Tensor, "G P ..."]:
        """Lays values out in groups of `sequences` sequences."""
        return self.lay_out(rows).flatten(0, 1).unflatten(0, (-1, sequences * self.length))

    def occupied_groups(self, sequences: int) -> Bool[Tensor, "G P"] | None:
        """Returns `occupied` in groups of `sequences` sequences."""
        occupied = self.occupied
        return None if occupied is None else occupied.reshape(-1, sequences * self.length)

    def part(self, workers: Axis) -> "Rows":
        """Returns this worker's part of every sequence, of which all have equally many positions."""
        if workers.size == 1:
            return self
        assert self.is_full, "rows that skip a block are of whole sequences"
        assert self.length % workers.size == 0, f"{workers.size} workers, {self.length} tokens"
        size = self.length // workers.size
        first = workers.rank * size
        here = slice(first, first + size)
        is_real = None if self.is_real is None else self.is_real[:, here]
        return Rows(
            self.sequence_ids, self.values[:, here], is_real, whole=self, first=first, workers=workers
        )

    def part_of(self, laid_out: Shaped[Tensor, "B S ..."]) -> Shaped[Tensor, "B S_of_part ..."]:
        """Selects these rows' part of every sequence from values of whole sequences."""
        return laid_out if self.whole is None else laid_out[:, self.first : self.first + self.length]

    def only(self, kept: Int[Tensor, " N"]) -> "Rows":
        """Returns only the rows with these ascending indices."""
        return replace(self, places=kept if self.places is None else self.places[kept])

    def places_of(self, indices: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
        """Returns the places of the rows with these indices."""
        return indices if self.places is None else self.places[indices]
