"""Compares the collectives that `moe-train show` lists with those that were counted."""

from collections.abc import Iterable, Sequence
from typing import Any

from moe_train.layout.exchange import Exchange

FEW, SMALL = 4, 4000
"""Sums of numbers in an update, those of Adafactor among them, and their bytes."""


def assert_same_traffic(listed: Sequence[Exchange], rows: Iterable[dict[str, Any]]) -> None:
    """Kind by kind; an update sums a few numbers besides."""
    rows = list(rows)
    for kind in ("all_gather", "reduce_scatter", "all_to_all", "all_reduce", "reduce"):
        of_kind = [row for row in rows if row["kind"] == kind]
        mine = [one for one in listed if one.kind == kind]
        number, size = (
            sum(row[key] for row in of_kind) - sum(getattr(one, key) for one in mine)
            for key in ("number", "bytes")
        )
        few, small = (FEW, SMALL) if kind == "all_reduce" else (0, 0)
        assert 0 <= number <= few, (kind, mine, of_kind)
        assert 0 <= size <= small, (kind, mine, of_kind)
