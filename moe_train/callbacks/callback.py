"""Defines callbacks, which observe a run without being part of its arithmetic: sinks and the console.

All callbacks live on rank 0 only. They receive every row that goes into metrics.jsonl; the rows are a stable
interface, documented in docs/metrics.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_train.config.schema import Recipe

Row = Mapping[str, Any]


@dataclass(frozen=True)
class RunInfo:
    """Describes the run to its callbacks."""

    recipe: Recipe
    run_dir: Path
    attempt: int
    start_step: int
    """Number of steps made before this attempt; 0 for a new run."""
    workers: int
    total_parameters: int
    active_parameters: int
    moe_layers: tuple[int, ...]
    """Indices of the MoE layers, in the order of the rows' per-layer lists."""


class Callback:
    """Receives a run's rows; a kind of callback overrides the methods it needs.

    A callback that fails is switched off with a message and never stops training, unless it raises one of moe-train's
    own errors (`group.py`).
    """

    def on_start(self, info: RunInfo) -> None:
        """Is called before the first step of this attempt."""

    def on_step(self, step: int) -> None:
        """Is called after every update, so it must cost almost nothing."""

    def on_row(self, row: Row) -> None:
        """Receives a training row (it has `loss`), a validation row (`validation_loss`) or an event row (`event`)."""

    def on_stop(self, exit_code: int) -> None:
        """Is called when the run ends with this exit code of the contract; never after a crash."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the state that a resume needs, as JSON-ready data; it is saved in every checkpoint."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the state on a resume; is called before `on_start`."""
