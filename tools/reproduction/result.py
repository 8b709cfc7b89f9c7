"""One measured run, (arm, seed), as a small JSON file: what it was, what it cost, what it learned.

Everything in the report is computed from these files. L MoE layers, E experts.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reproduction.flops import FlopAccount
from reproduction.plan import Arm, ReproductionError

from moe_cluster.atomic import replace_text
from moe_train.monitor.rows import current_rows, read_rows

SCORES = ("bleu", "chrf")


@dataclass(frozen=True)
class Window:
    """The steps between two training rows of metrics.jsonl."""

    step: int
    """The last of them."""
    steps: int
    loss: float | None
    """Training loss of the last one; None where it was not finite."""
    load: list[list[int]]
    """[L][E]: assignments before the capacity limit."""
    dropped: list[int]
    """[L]: beyond it."""

    @property
    def kept(self) -> int:
        """Assignments that experts served, over all layers."""
        return sum(map(sum, self.load)) - sum(self.dropped)


@dataclass(frozen=True)
class Result:
    """What was measured of one arm at one seed."""

    arm: str
    seed: int
    fingerprint: str
    """Of the arm, as it was when it was measured."""
    commit: str
    command: str
    date: str
    machine: str
    text_hash: str
    """Of the tokenizer that was learned from the training text."""
    cpu_seconds: float
    """User and system time of the whole run, start and validation included."""
    wall_seconds: float
    finished: bool
    """The run made all its steps."""
    total_parameters: int
    active_parameters: int
    tokens_per_step: int
    slots_per_step: int | None
    """Slots of all experts and layers under the capacity limit; None without one."""
    flops: FlopAccount
    validation: list[tuple[int, float]]
    """(step, loss) in nats per token."""
    scores: list[tuple[int, dict[str, float]]]
    """(step, `bleu` and `chrf`) of a run that translates."""
    training: list[Window]
    events: list[dict[str, Any]]
    """Rows of metrics.jsonl that say what happened, in order."""
    extra: dict[str, Any]
    """What a poisoned run told beside its metrics."""

    def windows(self, share: float) -> list[Window]:
        """The windows in the last `share` of the run."""
        last = self.training[-1].step
        return [window for window in self.training if window.step > (1 - share) * last]

    def flops_until(self, step: float) -> float:
        """Training FLOPs until `step`, evenly spent between two training rows."""
        spent, before = 0.0, 0
        for window in self.training:
            of_window = self.flops.spent(window.steps * self.tokens_per_step, window.kept)
            if step < window.step:
                return spent + of_window * (step - before) / window.steps
            spent, before = spent + of_window, window.step
        return spent

    def count_events(self, name: str) -> int:
        """How often `name` happened."""
        return sum(event["event"] == name for event in self.events)


def path_of(folder: Path, arm: str, seed: int) -> Path:
    """Where a result lies."""
    return folder / f"{arm}.seed{seed}.json"


def save(result: Result, folder: Path) -> None:
    """Write the file, as a whole or not at all. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in asdict(result).items()]
    replace_text(path_of(folder, result.arm, result.seed), "{\n" + ",\n".join(lines) + "\n}\n")


def load(folder: Path, arm: Arm, seed: int) -> Result | None:
    """The result of an arm as it now is; None where there is none. Raises ReproductionError for a damaged file."""
    path = path_of(folder, arm.name, seed)
    try:
        entry = json.loads(path.read_text())
        entry["flops"] = FlopAccount(**entry["flops"])
        entry["training"] = [Window(**window) for window in entry["training"]]
        for field in ("validation", "scores"):
            entry[field] = [(step, value) for step, value in entry[field]]
        result = Result(**entry)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReproductionError(
            f"{path}: is not a result ({error}); remove it, and it is measured again"
        ) from None
    return result if result.fingerprint == arm.fingerprint else None


def read_metrics(path: Path) -> dict[str, Any]:
    """Validation losses, scores, training windows and events of a run's metrics.jsonl, as Result names them."""
    rows = current_rows(read_rows(path))
    validations = [row for row in rows if row.get("validation_loss") is not None]
    return {
        "validation": [(row["step"], round(row["validation_loss"], 6)) for row in validations],
        "scores": [
            (row["step"], {name: round(row[name], 3) for name in SCORES})
            for row in validations
            if SCORES[0] in row
        ],
        "training": list(_windows([row for row in rows if "loss" in row])),
        "events": [dict(row) for row in rows if "event" in row],
    }


def _windows(rows: Sequence[Mapping[str, Any]]) -> list[Window]:
    starts = [0, *(row["step"] for row in rows)]
    return [
        Window(
            row["step"],
            row["step"] - start,
            None if row["loss"] is None else round(row["loss"], 5),
            row["moe"]["load"],
            row["moe"]["dropped"],
        )
        for start, row in zip(starts, rows, strict=False)
    ]
