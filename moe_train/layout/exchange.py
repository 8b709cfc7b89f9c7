"""Describes a collective of an update, and what a rank does in one, for the lists of all parts of the layout."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Exchange:
    """Describes a collective that an update makes `number` times."""

    kind: str
    axis: str
    what: str
    number: int
    bytes: int
    """Of all of them: what one rank puts in or gets out, whichever is more."""


@dataclass(frozen=True)
class Work:
    """Describes what a rank does in an update."""

    microbatches: int
    passes: int
    sequences: int
    """Of a microbatch."""
    is_bf16: bool
    counting_passes: int = 0
    """Forward passes that count the loads of a batch before the first with a gradient."""

    @property
    def backward_passes(self) -> int:
        """Returns the number of passes with a gradient."""
        return self.microbatches * self.passes

    @property
    def forward_passes(self) -> int:
        """Returns the number of all passes, without those that recomputation repeats."""
        return self.backward_passes + self.counting_passes


def together(every: list[Exchange]) -> list[Exchange]:
    """Returns one entry for all that differ in number and bytes alone, in the order in which they first come."""
    summed: dict[tuple[str, str, str], tuple[int, int]] = {}
    for one in every:
        key = one.kind, one.axis, one.what
        number, size = summed.get(key, (0, 0))
        summed[key] = number + one.number, size + one.bytes
    return [Exchange(*key, *numbers) for key, numbers in summed.items()]
