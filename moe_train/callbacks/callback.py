"""What hangs on a run without being part of its arithmetic: sinks and the console.

All callbacks live on rank 0 only. They are told of every row that goes into metrics.jsonl; the rows are a stable
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
    """What a callback may know of the run it hangs on."""

    recipe: Recipe
    run_dir: Path
    attempt: int
    start_step: int
    """Steps already made when this attempt began; 0 for a new run."""
    workers: int
    total_parameters: int
    active_parameters: int
    moe_layers: tuple[int, ...]
    """Indices of the MoE layers, in the order of the rows' per-layer lists."""


class Callback:
    """Told of a run's rows; a kind of callback overrides what it cares for.

    A callback that fails is switched off with a message and never stops training, unless it raises one of
    moe-train's own errors (`group.py`).
    """

    def on_start(self, info: RunInfo) -> None:
        """The run is about to take its first step of this attempt."""

    def on_step(self, step: int) -> None:
        """An update was made; called every step, so it must cost nothing."""

    def on_row(self, row: Row) -> None:
        """A training row (`loss` is in it), a validation row (`validation_loss`) or an event row (`event`)."""

    def on_stop(self, exit_code: int) -> None:
        """The run ends, with this exit code of the contract; never called after a crash."""

    def state_dict(self) -> dict[str, Any]:
        """What must be known after a resume, as JSON-ready data; saved in every checkpoint."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Called before `on_start`, on a resume."""
