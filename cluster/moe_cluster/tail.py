"""Follows a text file that another process, perhaps on another machine, appends to."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

POLL_S = 0.5


def lines_of(path: Path, is_over: Callable[[], bool]) -> Iterator[str]:
    """Lines of `path` without their newline, also those to come, until `is_over()` and nothing more has come.

    The file may not be there yet.
    """
    position, rest = 0, b""
    while True:
        last = is_over()  # asked before the file is read: what was written until then is not missed
        if path.exists():
            with path.open("rb") as file:
                file.seek(position)
                new = file.read()
            position += len(new)
            *whole, rest = (rest + new).split(b"\n")
            yield from (line.decode(errors="replace") for line in whole)
        if last:
            if rest:
                yield rest.decode(errors="replace")
            return
        time.sleep(POLL_S)
