"""Reads metrics.jsonl: the rows of a run, and which of them count once the run was killed and resumed.

metrics.jsonl is append-only. What an attempt wrote after the checkpoint that a later attempt resumed from
stays in the file, so a reader asks for the rows that count. docs/metrics.md documents every row. Nothing here
imports torch.
"""

import json
import logging
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from moe_train.errors import RunError

METRICS_FILE = "metrics.jsonl"

Row = Mapping[str, Any]

log = logging.getLogger(__name__)


def parse_row(line: bytes) -> dict[str, Any] | None:
    """The row in one line, without its newline; None if the line is no JSON object."""
    try:
        row = json.loads(line)
    except ValueError:  # UnicodeDecodeError is one, too
        return None
    return row if isinstance(row, dict) else None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a metrics file, in file order. A file that is not there yet has none.

    What follows the last newline is a row still being written, or torn by a kill, and is left out; so is a
    damaged line, which is logged. A pipe has none: reading would wait for a writer, and take rows from its reader.
    Raises RunError if the file cannot be read.
    """
    if path.is_fifo():
        return []
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); check its permissions.") from None
    rows = [row for line in lines if (row := parse_row(line)) is not None]
    if len(rows) < len(lines):
        log.warning("%s: %d of %d lines are damaged and left out.", path, len(lines) - len(rows), len(lines))
    return rows


def current_rows(rows: Iterable[Row]) -> list[Row]:
    """The rows that count, by step: of every step the highest attempt's, and nothing that was rolled back.

    An attempt that began at step s, or rolled back to it, replaces what was written before about later steps, reached
    again or not. Event rows are history and all stay.
    """
    numbered = list(_with_attempts(rows))
    began: dict[int, float] = {}
    for attempt, row in numbered:
        # A training row at step s was written after update s, all others may be written before update s + 1.
        before = row["step"] - 1 if "loss" in row else row["step"]
        began[attempt] = min(began.get(attempt, math.inf), before)
    kept: dict[tuple[str, int], tuple[int, Row]] = {}
    events = []
    for attempt, row in numbered:
        if "event" in row:
            events.append(row)
            if row["event"] == "rollback":
                kept = {key: entry for key, entry in kept.items() if key[1] <= row["step"]}
            continue
        rolled_back_to = min((step for later, step in began.items() if later > attempt), default=math.inf)
        kind = "loss" if "loss" in row else "validation_loss"
        other = kept.get((kind, row["step"]))
        if row["step"] <= rolled_back_to and (other is None or attempt >= other[0]):
            kept[kind, row["step"]] = (attempt, row)
    return sorted([*events, *(row for _, row in kept.values())], key=lambda row: row["step"])


def _with_attempts(rows: Iterable[Row]) -> Iterable[tuple[int, Row]]:
    """Each row that has a step, with its attempt; a row that names none belongs to the attempt before it."""
    attempt = 1
    for row in rows:
        if isinstance(row.get("step"), int):
            attempt = row.get("attempt", attempt)
            yield attempt, row
