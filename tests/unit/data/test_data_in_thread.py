"""Native calls beside the main thread."""

import signal
import threading
import time

import pytest

from moe_train.data import in_thread as module
from moe_train.data.in_thread import in_thread


def test_the_result_and_the_exception_of_a_call_are_its_own():
    assert in_thread(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        in_thread(lambda: 1 // 0)


def test_a_signal_is_heard_while_a_call_lasts():
    waits = threading.Event()

    def end(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            in_thread(waits.wait)
    finally:
        signal.signal(signal.SIGALRM, before)
        waits.set()


def test_a_long_call_is_reported_again_and_again(monkeypatch):
    monkeypatch.setattr(module, "REPORT_EVERY_S", 0.2)
    reports: list[float] = []
    in_thread(lambda: time.sleep(0.9), reports.append)
    assert len(reports) >= 2
    assert reports == sorted(reports)
