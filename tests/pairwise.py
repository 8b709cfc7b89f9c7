"""Chooses few combinations of values in which every pair of values occurs that may stand together.

Greedy and without chance: the first pair that is missing begins a combination, whose other axes take values that add
most missing pairs. Which values exclude each other is asked, not known.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

Choice = dict[str, str]
"""A value for each axis."""
Value = tuple[str, str]
"""An axis, and a value on it."""
Pair = tuple[Value, Value]


@dataclass(frozen=True)
class Covering:
    """Combinations that have all pairs of values but those of which none was found that has them."""

    chosen: list[Choice]
    apart: list[Pair]


def covering(axes: Mapping[str, Sequence[str]], may_stand: Callable[[Choice], bool]) -> Covering:
    """Covers the pairs of `axes`. The first value of each axis is the plain one; all plain ones may stand together."""
    plain = {axis: values[0] for axis, values in axes.items()}
    assert may_stand(plain), plain
    supports = {value: _support(axes, may_stand, plain, value) for value in _values(axes)}
    missing = dict.fromkeys(
        (one, other) for one, other in combinations(_values(axes), 2) if one[0] != other[0]
    )
    chosen: list[Choice] = []
    apart: list[Pair] = []
    while missing:
        pair = next(iter(missing))
        choice = _with_pair(axes, may_stand, supports, pair, chosen)
        if choice is None:
            apart.append(pair)
            del missing[pair]
            continue
        choice = _enriched(axes, may_stand, choice, pair, missing)
        chosen.append(choice)
        for covered in combinations(choice.items(), 2):
            missing.pop(covered, None)
    return Covering(chosen, apart)


def _values(axes: Mapping[str, Sequence[str]]) -> Iterator[Value]:
    return ((axis, value) for axis, values in axes.items() for value in values)


def _support(
    axes: Mapping[str, Sequence[str]], may_stand: Callable[[Choice], bool], plain: Choice, value: Value
) -> Choice:
    """Returns the plain combination with the value, and the fewest changes, two at most, that let it stand there."""
    start = plain | dict([value])
    others = [other for other in _values(axes) if other[0] != value[0] and other[1] != plain[other[0]]]
    for number in range(3):
        for changes in combinations(others, number):
            choice = start | dict(changes)
            if may_stand(choice):
                return choice
    raise AssertionError(f"{value} stands in no combination with up to two values that are not plain")


def _with_pair(
    axes: Mapping[str, Sequence[str]],
    may_stand: Callable[[Choice], bool],
    supports: Mapping[Value, Choice],
    pair: Pair,
    chosen: Sequence[Choice],
) -> Choice | None:
    """Returns a combination with the pair: one of its values' own, a chosen one, or one with one more change."""
    starts = [supports[pair[0]] | dict(pair), supports[pair[1]] | dict(pair)]
    changed = [item for item in supports[pair[0]].items() if item not in supports[pair[1]].items()]
    starts.append(supports[pair[1]] | dict(changed) | dict(pair))
    starts += [choice | dict(pair) for choice in chosen]
    for choice in starts:
        if may_stand(choice):
            return choice
    fixed = {axis for axis, _ in pair}
    for start in starts[:3]:
        for axis, value in _values(axes):
            if axis not in fixed and may_stand(start | {axis: value}):
                return start | {axis: value}
    return None


def _enriched(
    axes: Mapping[str, Sequence[str]],
    may_stand: Callable[[Choice], bool],
    choice: Choice,
    pair: Pair,
    missing: Mapping[Pair, None],
) -> Choice:
    """Returns the combination with other values on the axes beside the pair's, where they add missing pairs."""
    fixed, order = {axis for axis, _ in pair}, list(axes)

    def gain(axis: str, value: str) -> int:
        pairs = [
            ((axis, value), other) if order.index(axis) < order.index(other[0]) else (other, (axis, value))
            for other in choice.items()
            if other[0] != axis
        ]
        return sum(each in missing for each in pairs)

    for axis in sorted((axis for axis in axes if axis not in fixed), key=lambda axis: -len(axes[axis])):
        for value in sorted(axes[axis], key=lambda value: -gain(axis, value)):
            if gain(axis, value) <= gain(axis, choice[axis]):
                break
            if may_stand(choice | {axis: value}):
                choice = choice | {axis: value}
                break
    return choice
