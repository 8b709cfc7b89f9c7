"""How evenly one MoE layer used its experts: pure functions on one layer's counts, a list of E integers.

The counts are global assignments before the capacity limit, summed over a span of steps (recent.py). A span without an
assignment measured nothing, so every figure of it is NaN (null in metrics.jsonl), never a perfect score.
docs/metrics.md says how to read the figures.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

DEAD_SHARE = 0.1
"""An expert is dead when its load is below this part of the fair share, total / E."""


def cv(load: Sequence[int]) -> float:
    """Coefficient of variation, population standard deviation / mean: 0 is even, sqrt(E - 1) one expert."""
    if not sum(load):
        return math.nan
    mean = sum(load) / len(load)
    return math.sqrt(sum((count - mean) ** 2 for count in load) / len(load)) / mean


def chance_cv(load: Sequence[int]) -> float:
    """What `cv` is of as many assignments drawn evenly, one by one: sqrt((E - 1) / n), its root mean square."""
    return math.sqrt((len(load) - 1) / sum(load)) if sum(load) else math.nan


def max_violation(load: Sequence[int]) -> float:
    """max / mean - 1 (MaxVio of 2408.15664): 0 is even, E - 1 is one expert."""
    total = sum(load)
    return max(load) * len(load) / total - 1 if total else math.nan


def min_violation(load: Sequence[int]) -> float:
    """1 - min / mean: 0 is even, 1 is an expert without a token."""
    total = sum(load)
    return 1 - min(load) * len(load) / total if total else math.nan


def load_entropy(load: Sequence[int]) -> float:
    """Entropy of the load shares / ln E: 1 is even, 0 is one expert of several; one expert alone is even."""
    if not sum(load):
        return math.nan
    return _entropy(load) / math.log(len(load)) if len(load) > 1 else 1.0


def effective_experts(load: Sequence[int]) -> float:
    """exp of the entropy of the load shares: how many evenly used experts would be as diverse."""
    return math.exp(_entropy(load)) if sum(load) else math.nan


def dead_experts(load: Sequence[int]) -> list[int]:
    """Ids of the experts with a share below DEAD_SHARE / E; none in a window without assignments."""
    total = sum(load)
    return [expert for expert, count in enumerate(load) if count * len(load) < DEAD_SHARE * total]


def dead_fraction(load: Sequence[int]) -> float:
    """Share of the experts that are dead."""
    return len(dead_experts(load)) / len(load) if sum(load) else math.nan


def _entropy(load: Sequence[int]) -> float:
    """-sum f ln f in nats over the shares f = count / total; an unused expert adds nothing."""
    total = sum(load)
    return -sum(count / total * math.log(count / total) for count in load if count)


FIGURES: Mapping[str, Callable[[Sequence[int]], float | list[int]]] = {
    "cv": cv,
    "chance_cv": chance_cv,
    "max_violation": max_violation,
    "min_violation": min_violation,
    "entropy": load_entropy,
    "effective": effective_experts,
    "dead_fraction": dead_fraction,
    "dead": dead_experts,
}
"""Key of a row -> the figure of each layer that it has."""


def figure(moe: Mapping[str, Any], key: str, layer: int) -> Any:
    """One of FIGURES of the `moe` of a row; where an older moe-train wrote it without, that of the row's loads."""
    if key in moe:
        return moe[key][layer]
    load = moe["load"][layer]
    return FIGURES[key](load) if sum(load) else None
