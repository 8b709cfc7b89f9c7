"""Runs long native calls beside the main thread, which alone hears signals, and hears none while it is in one."""

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
    """The result of `call`, or its exception; `report` is told every minute for how long it has run.

    An exception that a signal handler raises meanwhile abandons `call`: see `end_abandoned`.
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
    """`exit_code`; but where a call of `in_thread` was abandoned and still runs, the process ends with it here.

    Such a call may want Python's lock while the interpreter shuts down, and native code aborts when it is denied it.
    """
    if any(thread.name == NAME for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
    return exit_code
