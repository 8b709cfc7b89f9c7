"""States what one worker on a Ray cluster needs, as it travels from an executor to the launcher.

Every executor that starts a Ray cluster passes it on, so it stands here and not with Ray's own files.
"""

from collections.abc import Mapping
from dataclasses import dataclass

SHARE_VARIABLE = "MOE_TRAIN_RAY_SHARE"
"""A Share, as JSON; absent: a CPU for each worker."""


@dataclass(frozen=True)
class Share:
    """What one worker needs, and how many of them a node may hold."""

    resources: Mapping[str, float]
    """In Ray's names: CPU, GPU, memory (bytes)."""
    per_node: int = 1_000_000
