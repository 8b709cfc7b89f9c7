"""Lets a program survive the loss of its standard output and standard error: closed, full disk, no reader, encoding.

A daemon starts programs without them, and a job's output may be on another disk than its run. If the output is the
result of a command, losing it is an error with one message; if it only reports progress, it is ignored. Every process
of ours calls `protect_output` before it opens a file.
"""

import contextlib
import io
import os
import select
import sys
from collections.abc import Callable
from typing import IO

from moe_cluster.contract import FAILED
from moe_cluster.errors import ClusterError

PATIENCE_S = 5.0
"""A full stream that does not block is waited for this long, once."""


class OutputError(ClusterError):
    """Reports that the result of a command could not be written to standard output."""


def protect_output(is_result: bool) -> None:
    """Make writes to standard output and standard error never fail.

    With `is_result`, output that is lost raises OutputError, or BrokenPipeError if its reader has gone. Streams that
    are not the process's own, such as a test's, stay unchanged.
    """
    _open_missing()
    if sys.stdout is sys.__stdout__ or _raw(sys.stdout):
        sys.stdout = output_stream(1, sys.stdout, is_result)
    if sys.stderr is sys.__stderr__ or _raw(sys.stderr):
        sys.stderr = output_stream(2, sys.stderr, is_result=False)


def output_stream(descriptor: int, like: IO[str] | None, is_result: bool) -> io.TextIOWrapper:
    """Returns a stream to `descriptor` in the encoding of `like`; characters that it lacks become question marks."""
    if like is not None:
        with contextlib.suppress(OSError):  # what a full disk did not take before is lost
            like.flush()
    encoding = getattr(like, "encoding", None) or "utf-8"
    buffer = io.BufferedWriter(_Descriptor(descriptor, is_result))
    by_lines = descriptor == 2 or not is_result or os.isatty(descriptor)
    return io.TextIOWrapper(buffer, encoding=encoding, errors="replace", line_buffering=by_lines)


def lost_output(stream: IO[str]) -> OSError | None:
    """Returns the error by which a stream of `output_stream` lost output; None if it lost nothing."""
    raw = _raw(stream)
    return raw.failure if raw else None


def run_main(main: Callable[[], int | None]) -> int:
    """Run a program whose output is its result; returns its exit code, or FAILED where the output was lost."""
    protect_output(is_result=True)
    try:
        return finish_output(main() or 0)
    except OutputError as error:
        print(f"error: {error}", file=sys.stderr)
    except BrokenPipeError:
        if lost_output(sys.stdout) is None:
            raise
    return FAILED


def finish_output(code: int) -> int:
    """Flush standard output, then return `code`. Raises like a write to it."""
    sys.stdout.flush()
    return code


def _open_missing() -> None:
    """Open closed standard descriptors on /dev/null: else the next files opened get their numbers, and the output of
    native code and other programs would be written into them."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
            os.set_inheritable(opened, True)


def _raw(stream: IO[str]) -> "_Descriptor | None":
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw if isinstance(raw, _Descriptor) else None


class _Descriptor(io.FileIO):
    """Writes to a file descriptor and drops what it does not take; a lost result raises an error once."""

    def __init__(self, descriptor: int, is_result: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._is_result = is_result
        self.failure: OSError | None = None

    def write(self, data, /) -> int:  # type: ignore[no-untyped-def]  # a buffer, which Python 3.11 has no name for
        size = memoryview(data).nbytes
        if self._is_result and self.failure is not None:
            return size
        try:
            written = super().write(data)
            if written is None:  # another program has the terminal or the pipe not block
                select.select([], [self], [], PATIENCE_S)
                written = super().write(data)
            return size if written is None else written
        except OSError as error:
            self.failure = error
        if self._is_result:
            if isinstance(self.failure, BrokenPipeError):
                raise self.failure
            raise OutputError(
                f"standard output: cannot be written ({self.failure.strerror}); free space, or redirect it elsewhere"
            )
        return size
