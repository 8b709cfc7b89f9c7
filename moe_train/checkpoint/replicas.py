"""Compares the copies of a box that several ranks hold: only the owner's is counted and written.

Copies are boxes of one tensor with the same offsets and shape on several ranks: parameters that workers hold whole, as
tensor ranks do norms and routers, their optimizer state, and buffers. They get the same updates, so they must stay
equal to the last bit. One checksum for each set of ranks travels, and only if it differs those of single boxes.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_train.checkpoint.layout import ShardedState, boxes_of, is_held
from moe_train.parallel.world import World

CHUNK = 2**20
"""Elements that are multiplied with their positions at once; smaller boxes are put together up to this many."""
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int32}  # room for the weights in 64 bits
_FACTOR = 0x9E3779B97F4A7C15  # odd and without a pattern, so that chunks are not exchangeable

Ranks = tuple[int, ...]


@dataclass(frozen=True)
class Difference:
    """Names a tensor of whose box ranks hold copies that differ; ranks with the same bits are together."""

    name: str
    groups: tuple[Ranks, ...]

    def __str__(self) -> str:
        return f"{self.name} has other values on {' than on '.join(_listed(ranks) for ranks in self.groups)}"


class Replicas:
    """Compares copies. Which boxes have any is found in the first call, so all calls must be about the same boxes."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._sets: dict[Ranks, list[int]] | None = None  # the ranks that hold copies -> ids of these boxes

    def differences(self, state: ShardedState) -> list[Difference]:
        """Returns the tensors whose copies are not equal to the last bit, alike on every rank. Collective."""
        if self._world.size == 1:
            return []
        held = {
            _id(name, shard.offsets, tuple(shard.data.shape)): (name, shard.data.detach())
            for name, shard in boxes_of(state)
            if is_held(shard)
        }
        if self._sets is None:
            self._sets = _sets_of_holders(held, self._world.gather(list(held)))
        own = {_id(ranks): checksum([held[box][1] for box in boxes]) for ranks, boxes in self._sets.items()}
        values = _values(self._world.gather(own))
        if all(len(of_set) == 1 for of_set in values.values()):
            return []
        differing = [boxes for ranks, boxes in self._sets.items() if len(values[_id(ranks)]) > 1]
        return self._named({box: held[box] for boxes in differing for box in boxes})

    def _named(self, boxes: Mapping[int, tuple[str, Tensor]]) -> list[Difference]:
        """Returns the differences among these boxes of this rank and what the others name. Collective."""
        own = {box: (name, checksum([data])) for box, (name, data) in boxes.items()}
        gathered: list[dict[int, tuple[str, int]]] = self._world.gather(own)
        names = {box: name for part in gathered for box, (name, _) in part.items()}
        groups = _values([{box: value for box, (_, value) in part.items()} for part in gathered])
        found = [Difference(names[box], _sorted(ranks)) for box, ranks in groups.items() if len(ranks) > 1]
        return sorted(found, key=lambda difference: difference.name)


def checksum(tensors: Sequence[Tensor]) -> int:
    """Returns 64 bits that depend on every bit of the tensors and on its place. Waits for the device."""
    total = 0
    for chunk in _chunks(tensors):
        total = (total * _FACTOR + int((chunk.long() * _weights(chunk)).sum())) % 2**64
    return total


def _weights(chunk: Tensor) -> Tensor:
    """Returns a number for each place, without a pattern in which changes could cancel, and odd: no bit is lost."""
    places = torch.arange(1, chunk.numel() + 1, device=chunk.device) * (_FACTOR - 2**64)
    return (places ^ (places >> 29)) | 1


def _chunks(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yields the bits of the elements as integers, in pieces whose cuts depend on the shapes alone."""
    groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        bits = tensor.reshape(-1).view(_BITS[tensor.element_size()])
        groups[bits.dtype, bits.device].append(bits)
    for group in groups.values():
        yield from _joined(group)


def _joined(parts: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yields large parts in pieces, and small ones together: each piece costs a few calls and a wait."""
    waiting: list[Tensor] = []
    count = 0
    for part in parts:
        if part.numel() >= CHUNK:
            yield from part.split(CHUNK)
            continue
        waiting.append(part)
        count += part.numel()
        if count >= CHUNK:
            yield torch.cat(waiting)
            waiting, count = [], 0
    if waiting:
        yield torch.cat(waiting)


def _sets_of_holders(own: Iterable[int], of_ranks: Sequence[Sequence[int]]) -> dict[Ranks, list[int]]:
    """Returns the sets of ranks with which this rank shares boxes, and these boxes in an order all of them have."""
    holders: dict[int, list[int]] = {box: [] for box in sorted(own)}
    for rank, boxes in enumerate(of_ranks):
        for box in boxes:
            if box in holders:
                holders[box].append(rank)
    sets: dict[Ranks, list[int]] = defaultdict(list)
    for box, ranks in holders.items():
        if len(ranks) > 1:
            sets[tuple(ranks)].append(box)
    return dict(sets)


def _values(of_ranks: Sequence[Mapping[int, int]]) -> dict[int, dict[int, list[int]]]:
    """Returns, for each id that any rank has, the values it has and on which ranks."""
    values: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for rank, own in enumerate(of_ranks):
        for key, value in own.items():
            values[key][value].append(rank)
    return values


def _sorted(groups: Mapping[int, Sequence[int]]) -> tuple[Ranks, ...]:
    """Returns the groups of ranks, the smallest first: those that probably are wrong."""
    return tuple(sorted((tuple(ranks) for ranks in groups.values()), key=lambda ranks: (len(ranks), ranks)))


def _listed(ranks: Ranks) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def _id(*key: object) -> int:
    """Returns a number for a key that is the same in all processes, and short, as all of them are gathered."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8])
