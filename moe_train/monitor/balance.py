"""Measures how evenly one MoE layer used its experts: pure functions of one layer's counts, a list of E integers.

The counts are global assignments before the capacity limit, summed over a span of steps (recent.py). A span without an
assignment has measured nothing, so all its figures are NaN (null in metrics.jsonl), never a perfect score.
docs/metrics.md says how to read the figures.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

FAIR_SHARE = 100
"""Fewest assignments an expert, at even loads, to judge by: the CV by chance is then 0.1, and no expert looks dead."""
DEAD_SHARE = 0.1
"""An expert is dead when its load is below this part of the fair share, total / E."""


def cv(load: Sequence[int]) -> float:
    """Returns the coefficient of variation, standard deviation / mean: 0 is even, sqrt(E - 1) is one expert."""
    if not sum(load):
        return math.nan
    mean = sum(load) / len(load)
    return math.sqrt(sum((count - mean) ** 2 for count in load) / len(load)) / mean


def chance_cv(load: Sequence[int]) -> float:
    """Returns the CV that n assignments drawn evenly would have: sqrt((E - 1) / n), its root mean square."""
    return math.sqrt((len(load) - 1) / sum(load)) if sum(load) else math.nan


def max_violation(load: Sequence[int]) -> float:
    """Returns max / mean - 1 (MaxVio of 2408.15664): 0 is even, E - 1 is one expert."""
    total = sum(load)
    return max(load) * len(load) / total - 1 if total else math.nan


def min_violation(load: Sequence[int]) -> float:
    """Returns 1 - min / mean: 0 is even, 1 means an expert without a token."""
    total = sum(load)
    return 1 - min(load) * len(load) / total if total else math.nan


def load_entropy(load: Sequence[int]) -> float:
    """Returns the entropy of the load shares / ln E: 1 is even, 0 is one of several; a single expert is even."""
    if not sum(load):
        return math.nan
    return _entropy(load) / math.log(len(load)) if len(load) > 1 else 1.0


def effective_experts(load: Sequence[int]) -> float:
    """Returns exp of the entropy of the load shares: as many evenly used experts would be as diverse."""
    return math.exp(_entropy(load)) if sum(load) else math.nan


def top_share(load: Sequence[int]) -> float:
    """Returns the share of the assignments that the busiest expert has: 1 / E is even, 1 is one expert."""
    return max(load) / sum(load) if sum(load) else math.nan


def dead_experts(load: Sequence[int]) -> list[int]:
    """Returns the ids of the experts with a share below DEAD_SHARE / E; none in a window without assignments."""
    total = sum(load)
    return [expert for expert, count in enumerate(load) if count * len(load) < DEAD_SHARE * total]


def dead_fraction(load: Sequence[int]) -> float:
    """Returns the share of the experts that are dead."""
    return len(dead_experts(load)) / len(load) if sum(load) else math.nan


def device_load(load: Sequence[int], degree: int) -> list[int]:
    """Returns the load of each of the `degree` workers that share out a layer's experts, neighbours together."""
    own = len(load) // degree
    return [sum(load[first : first + own]) for first in range(0, len(load), own)]


def _entropy(load: Sequence[int]) -> float:
    """Returns -sum f ln f in nats over the shares f = count / total; an unused expert adds nothing."""
    total = sum(load)
    return -sum(count / total * math.log(count / total) for count in load if count)


FIGURES: Mapping[str, Callable[[Sequence[int]], float | list[int]]] = {
    "cv": cv,
    "chance_cv": chance_cv,
    "max_violation": max_violation,
    "min_violation": min_violation,
    "entropy": load_entropy,
    "effective": effective_experts,
    "effective_experts": effective_experts,
    "top_share": top_share,
    "dead_fraction": dead_fraction,
    "dead": dead_experts,
}
"""Figures of each layer by their key in a row."""


def figure(moe: Mapping[str, Any], key: str, layer: int) -> Any:
    """Returns one of FIGURES from a row's `moe`; computes it from the loads if an older moe-train left it out."""
    if key in moe:
        return moe[key][layer]
    load = moe["load"][layer]
    return FIGURES[key](load) if sum(load) else None
