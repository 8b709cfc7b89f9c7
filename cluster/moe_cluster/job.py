"""What a launcher is asked to start: one attempt at a run, as text and numbers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from moe_cluster.contract import TRAINER_MODULE


@dataclass(frozen=True)
class JobSpec:
    """One attempt: so many workers, each running `python -m MODULE ARGUMENTS`."""

    arguments: tuple[str, ...]
    """What follows the module on its command line; see `contract.trainer_arguments`."""
    workers: int
    run_dir: Path
    attempt: int
    """Number of the attempt, from 1; its folder exists."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Set for the workers in addition to what the launcher's own environment holds."""
    module: str = TRAINER_MODULE
