"""Reads metrics.jsonl: the rows of a run, and which of them count after it was killed and resumed.

metrics.jsonl is append-only. Rows that an attempt wrote after the checkpoint from which a later attempt resumed stay in
the file, so a reader asks for the rows that count. docs/metrics.md documents every row. Nothing here imports torch.
"""

import gzip
import json
import logging
import math
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from moe_train.errors import RunError

METRICS_FILE = "metrics.jsonl"

NUMBERS = ("loss", "validation_loss", "lr", "grad_norm", "tokens_per_second", "memory_bytes", "loss_max")
"""Keys of rows whose value is a number or null."""

Row = Mapping[str, Any]

log = logging.getLogger(__name__)


def parse_row(line: bytes) -> dict[str, Any] | None:
    """Returns the row of a line without its newline; None if the line is not a JSON object, or no sound row."""
    try:
        row = json.loads(line)
    except ValueError:  # UnicodeDecodeError is one, too
        return None
    return row if isinstance(row, dict) and _is_sound(row) else None


def as_read(value: Any) -> Any:
    """Returns a row, or a part of one, as a reader of the file gets it: null for NaN and infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: as_read(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_read(item) for item in value]
    return value


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Returns all rows of a metrics file, in file order. A file that does not exist yet has none.

    If there is only a compressed one, `metrics.jsonl.gz`, its rows are returned.

    Anything after the last newline is a row that is being written, or was cut off by a kill, and is left out; so is a
    damaged line, which is logged. A pipe has none: reading would wait for a writer, and take rows from its reader.
    Raises RunError if the file cannot be read.
    """
    if path.is_fifo():
        return []
    try:
        lines = _content(path).split(b"\n")[:-1]
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise RunError(f"{path}.gz: is not a whole gzip file; copy it again.") from None
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); check its permissions.") from None
    rows = [row for line in lines if (row := parse_row(line)) is not None]
    if len(rows) < len(lines):
        log.warning(
            "%s: %d of %d lines are damaged and were left out.", path, len(lines) - len(rows), len(lines)
        )
    return rows


def _content(path: Path) -> bytes:
    compressed = path.with_name(f"{path.name}.gz")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return gzip.decompress(compressed.read_bytes()) if compressed.is_file() else b""


def _is_sound(row: Mapping[str, Any]) -> bool:
    """Returns whether what readers count with has the type that they count on, in every row whatever its origin."""
    moe = row.get("moe", {})
    return (
        all(type(row[key]) is int and row[key] >= 0 for key in ("step", "attempt") if key in row)
        and all(_is_number(row[key]) for key in NUMBERS if key in row)
        and isinstance(moe, dict)
        and all(isinstance(values, list) for values in moe.values())
        and all(isinstance(load, list) and all(map(_is_number, load)) for load in moe.get("load", []))
    )


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def current_rows(rows: Iterable[Row]) -> list[Row]:
    """Returns the rows that count, by step: those of the highest attempt, without what was rolled back.

    An attempt that began at step s, or rolled back to it, replaces all earlier rows of later steps, whether it reaches
    them again or not. Event rows are history and all stay.
    """
    numbered = list(_with_attempts(rows))
    began: dict[int, float] = {}
    for attempt, row in numbered:
        # A training row at step s was written after update s, all others may be written before update s + 1.
        before = row["step"] - 1 if "loss" in row else row["step"]
        began[attempt] = min(began.get(attempt, math.inf), before)
    current: dict[tuple[str, int], tuple[int, Row]] = {}
    events = []
    for attempt, row in numbered:
        if "event" in row:
            events.append(row)
            if row["event"] == "rollback":
                current = {key: entry for key, entry in current.items() if key[1] <= row["step"]}
            continue
        rolled_back_to = min((step for later, step in began.items() if later > attempt), default=math.inf)
        kind = "loss" if "loss" in row else "validation_loss"
        other = current.get((kind, row["step"]))
        if row["step"] <= rolled_back_to and (other is None or attempt >= other[0]):
            current[kind, row["step"]] = (attempt, row)
    return sorted([*events, *(row for _, row in current.values())], key=lambda row: row["step"])


def _with_attempts(rows: Iterable[Row]) -> Iterable[tuple[int, Row]]:
    """Yields each row that has a step, with its attempt; a row without one belongs to the attempt of the row before."""
    attempt = 1
    for row in rows:
        if isinstance(row.get("step"), int):
            attempt = row.get("attempt", attempt)
            yield attempt, row
