"""Runs long native calls in another thread, since the main thread handles no signal while it is in one."""

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

REPORT_EVERY_S = 60.0
POLL_S = 0.1
NAME = "native call"


def in_thread(call: Callable[[], Result], report: Callable[[float], None] = lambda seconds: None) -> Result:
    """Returns the result of `call` or raises its exception; calls `report` every minute with the seconds so far.

    If a signal handler raises an exception meanwhile, `call` is abandoned: see `end_abandoned`.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name=NAME, daemon=True)
    began = reported = time.monotonic()
    thread.start()
    while thread.is_alive():
        thread.join(POLL_S)
        if time.monotonic() - reported >= REPORT_EVERY_S:
            reported = time.monotonic()
            report(reported - began)
    if errors:
        raise errors[0]
    return results[0]


def end_abandoned(exit_code: int) -> int:
    """Returns `exit_code`, or ends the process with it at once if an abandoned call of `in_thread` still runs.

    Such a call may request Python's lock while the interpreter shuts down, and native code aborts if it is refused.
    """
    if any(thread.name == NAME for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
    return exit_code
