"""Follows a text file that another process, perhaps on another machine, appends to."""

import math
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from moe_cluster.errors import ClusterError

POLL_S = 0.5
SCHEDULER_S = 3.0
"""Seconds between two requests to a scheduler, which serves all users, while a log is followed."""

# Colours and other control sequences of a terminal.
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# The prefix of another process's line in a Ray driver's output: "(RayTrainWorker pid=133, ip=10.0.0.2) ".
RAY_PROCESS = re.compile(r"\((?:[^()]* )?pid=\d+(?:, ip=[^()]*)?\) ?|\(raylet(?:, ip=[^()]*)?\) ")


def plain(line: str) -> str:
    """Returns a line for a file or a program, without a terminal's colours and Ray's prefix."""
    line = CONTROL.sub("", line)
    prefix = RAY_PROCESS.match(line)
    return line[prefix.end() :] if prefix else line


def lines_of(path: Path, is_over: Callable[[], bool], ask_every_s: float = POLL_S) -> Iterator[str]:
    """Yield the lines of `path` without their newline, and follow it until `is_over()` and the file has ended.

    The file may be missing at first. `ask_every_s`: seconds between two calls of `is_over`, which may ask a scheduler.
    Raises ClusterError if the file cannot be read.
    """
    position, rest = 0, b""
    last_call, last = -math.inf, False
    while True:
        if time.monotonic() - last_call >= ask_every_s:
            last = is_over()  # before the file is read, so that no line written until then is missed
            last_call = time.monotonic()
        if new := _from(path, position):
            position += len(new)
            *whole, rest = (rest + new).split(b"\n")
            yield from (line.decode(errors="replace") for line in whole)
        if last:
            if rest:
                yield rest.decode(errors="replace")
            return
        time.sleep(POLL_S)


def _from(path: Path, position: int) -> bytes:
    """Read a file from a position on; empty if it does not exist yet."""
    try:
        with path.open("rb") as file:
            file.seek(position)
            return file.read()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise ClusterError(f"{path}: cannot be read ({error.strerror}); correct its permissions") from None
