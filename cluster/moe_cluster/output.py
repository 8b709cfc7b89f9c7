"""Lets a program outlive its standard output and standard error: closed, on a full disk, unread, in any encoding.

A daemon starts programs without them, and a job's output may lie on another disk than its run. Where the output is the
result of a command, losing it is an error with one message; where it only tells how something goes, nothing ends for
that. Whoever starts a process of ours calls `protect_output` before it opens a file.
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
    """Standard output did not take the result of a command."""


def protect_output(is_result: bool) -> None:
    """Have standard output and standard error take whatever is written to them.

    `is_result`: what does not reach standard output raises OutputError, or BrokenPipeError where its reader has gone.
    Streams that are not the process's own, such as a test's, stay as they are.
    """
    _open_missing()
    if sys.stdout is sys.__stdout__ or _raw(sys.stdout):
        sys.stdout = output_stream(1, sys.stdout, is_result)
    if sys.stderr is sys.__stderr__ or _raw(sys.stderr):
        sys.stderr = output_stream(2, sys.stderr, is_result=False)


def output_stream(descriptor: int, like: IO[str] | None, is_result: bool) -> io.TextIOWrapper:
    """A stream to `descriptor` in the encoding of `like`; letters that this lacks become question marks."""
    if like is not None:
        with contextlib.suppress(OSError):  # what a full disk did not take before is lost
            like.flush()
    encoding = getattr(like, "encoding", None) or "utf-8"
    buffer = io.BufferedWriter(_Descriptor(descriptor, is_result))
    by_lines = descriptor == 2 or not is_result or os.isatty(descriptor)
    return io.TextIOWrapper(buffer, encoding=encoding, errors="replace", line_buffering=by_lines)


def lost_output(stream: IO[str]) -> OSError | None:
    """Why a stream of `output_stream` has not taken all that was written; None: it has."""
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
    """`code`, once standard output has taken all of the result. Raises like a write to it."""
    sys.stdout.flush()
    return code


def _open_missing() -> None:
    """Have closed descriptors lead nowhere: else the next files that are opened get their numbers, and whatever native
    code and other programs print would be written into them."""
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
    """A file descriptor that takes what is written even if it cannot; a result is missed once, with an error."""

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
                f"standard output: cannot be written ({self.failure.strerror}); free space, or send it elsewhere"
            )
        return size
