"""Describes the resources of one worker on a Ray cluster, which an executor passes to the launcher.

Every executor that starts a Ray cluster passes it on, so it is here and not with Ray's own files.
"""

from collections.abc import Mapping
from dataclasses import dataclass

SHARE_VARIABLE = "MOE_TRAIN_RAY_SHARE"
"""A Share, as JSON; absent: a CPU for each worker."""


@dataclass(frozen=True)
class Share:
    """Holds the resources of one worker, and the limit of workers on a node."""

    resources: Mapping[str, float]
    """In Ray's names: CPU, GPU, memory (bytes)."""
    per_node: int = 1_000_000
