"""Writes metrics.jsonl, the run's own record: one line per row, whatever other sinks are on or fail.

A row is one write to a file opened for appending: once `on_row` returns, the row survives a crash of the process.
monitor/rows.py reads the file back.
"""

import json
import logging
import mmap
import os
from pathlib import Path

from moe_train.callbacks.callback import Callback, Row, RunInfo
from moe_train.errors import RunError
from moe_train.monitor.rows import METRICS_FILE, as_read, parse_row

log = logging.getLogger(__name__)


class JsonlSink(Callback):
    """Appends every row to RUN/metrics.jsonl.

    Every method raises RunError if the file cannot be written: a run must not continue without its record.
    """

    def __init__(self) -> None:
        self._path = Path(METRICS_FILE)
        self._fd = -1

    def on_start(self, info: RunInfo) -> None:
        """Opens the file, and removes an incomplete last line that a killed attempt left."""
        self._path = info.run_dir / METRICS_FILE
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            size = os.fstat(self._fd).st_size
            valid_size = _valid_size(self._fd, size)
            if valid_size < size:
                os.ftruncate(self._fd, valid_size)
                log.warning("%s: removed %d bytes of an incomplete last line.", self._path, size - valid_size)
        except OSError as error:
            raise self._failure(error) from None

    def on_row(self, row: Row) -> None:
        """Appends one line."""
        line = encode_row(row)
        try:
            # A full disk may take part of the line; writing the rest then raises the reason.
            while line:
                line = line[os.write(self._fd, line) :]
        except OSError as error:
            raise self._failure(error) from None

    def on_stop(self, exit_code: int) -> None:
        """Syncs the rows to disk and closes the file."""
        try:
            os.fsync(self._fd)
            os.close(self._fd)
        except OSError as error:
            raise self._failure(error) from None

    def _failure(self, error: OSError) -> RunError:
        return RunError(
            f"{self._path}: cannot be written ({error.strerror}), and a run must not continue without its record; "
            "free space or make the run folder writable, then repeat the command to resume."
        )


def encode_row(row: Row) -> bytes:
    """Encodes the row as one line. Floats read back exactly; NaN and infinities, which JSON lacks, become null."""
    try:
        text = json.dumps(row, allow_nan=False, separators=(",", ":"))
    except ValueError:
        text = json.dumps(as_read(row), allow_nan=False, separators=(",", ":"))
    return text.encode() + b"\n"


def _valid_size(fd: int, size: int) -> int:
    """Returns the number of bytes up to the end of the last complete line that is a row."""
    if not size:
        return 0
    with mmap.mmap(fd, size, access=mmap.ACCESS_READ) as data:
        end = data.rfind(b"\n") + 1
        while end:
            start = data.rfind(b"\n", 0, end - 1) + 1
            if parse_row(data[start : end - 1]) is not None:
                break
            end = start
    return end
