"""Reads the logging window of checkpoints that gave counts a place instead of a name.

Their `counts` have a row for each MoE layer: its loads, as many as the layer with most experts has, then COLUMNS. Their
span (recent.py) is that of the loads.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from moe_train.results import LOAD

COLUMNS = ("dropped", "router_entropy", "router_top_probability", "tokens")


def by_name(state: Mapping[str, Any], num_experts: int) -> Mapping[str, Any]:
    """Returns the state of a window with names; `num_experts` are those of the layer that has most."""
    recent = state.get("recent") or {}
    counts = state.get("counts") or {}
    return {
        "counts": counts if isinstance(counts, Mapping) else _columns(counts, num_experts),
        "recent": recent if isinstance(recent, Mapping) else {LOAD: recent},
    }


def _columns(rows: Sequence[Sequence[int]], num_experts: int) -> dict[str, list[Any]]:
    """Returns the loads of `rows`, and the counts after them where these are COLUMNS."""
    counts: dict[str, list[Any]] = {LOAD: [row[:num_experts] for row in rows]}
    if all(len(row) == num_experts + len(COLUMNS) for row in rows):
        counts |= {name: [row[num_experts + place] for row in rows] for place, name in enumerate(COLUMNS)}
    return counts
