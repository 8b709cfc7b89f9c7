"""Follows a text file that another process, perhaps on another machine, appends to."""

import math
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from moe_cluster.errors import ClusterError

POLL_S = 0.5
SCHEDULER_S = 3.0
"""Between two questions to a scheduler while a log is followed: it answers those of all users."""

# Colours and other signs that steer a terminal.
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# What a Ray driver puts before a line of another process: "(RayTrainWorker pid=133, ip=10.0.0.2) ".
RAY_PROCESS = re.compile(r"\((?:[^()]* )?pid=\d+(?:, ip=[^()]*)?\) ?|\(raylet(?:, ip=[^()]*)?\) ")


def plain(line: str) -> str:
    """Returns a line as it was written, for a file or a program: without a terminal's colours, and without the process
    that Ray names before it."""
    line = CONTROL.sub("", line)
    named = RAY_PROCESS.match(line)
    return line[named.end() :] if named else line


def lines_of(path: Path, is_over: Callable[[], bool], ask_every_s: float = POLL_S) -> Iterator[str]:
    """Lines of `path` without their newline, also those to come, until `is_over()` and nothing more has come.

    The file may not be there yet. `ask_every_s`: seconds between two calls of `is_over`, for one that asks a scheduler.
    Raises ClusterError if the file cannot be read.
    """
    position, rest = 0, b""
    asked, last = -math.inf, False
    while True:
        if time.monotonic() - asked >= ask_every_s:
            last = is_over()  # asked before the file is read: what was written until then is not missed
            asked = time.monotonic()
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
    """What a file has from a place on; nothing where it is not there yet."""
    try:
        with path.open("rb") as file:
            file.seek(position)
            return file.read()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise ClusterError(
            f"{path}: cannot be read ({error.strerror}); ask its owner for permission"
        ) from None
