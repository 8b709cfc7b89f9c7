"""A callback that fails, wherever it does, is said with its reason, and training continues without it."""

import logging
from typing import Any

import pytest

from moe_train.callbacks.callback import Callback
from moe_train.callbacks.group import CallbackGroup
from moe_train.errors import RunError


class Counting(Callback):
    """Counts rows, and fails in one method once it is told to."""

    def __init__(self, fails_in: str = "", error: Exception | None = None) -> None:
        self.rows, self._fails_in, self._error = 0, fails_in, error or ValueError("no room\n  for it")

    def _may_fail(self, method: str) -> None:
        if method == self._fails_in:
            raise self._error

    def on_start(self, info: Any) -> None:
        self._may_fail("on_start")

    def on_step(self, step: int) -> None:
        self._may_fail("on_step")

    def on_row(self, row: Any) -> None:
        self.rows += 1
        self._may_fail("on_row")

    def on_stop(self, exit_code: int) -> None:
        self._may_fail("on_stop")

    def state_dict(self) -> dict[str, Any]:
        self._may_fail("state_dict")
        return {"rows": self.rows}

    def load_state_dict(self, state: Any) -> None:
        self._may_fail("load_state_dict")
        self.rows = state["rows"]


METHODS = ("load_state_dict", "on_start", "on_step", "on_row", "state_dict", "on_stop")


def drive(group: CallbackGroup) -> dict[str, Any]:
    group.load_state_dict({"bad": {"rows": 5}, "good": {"rows": 7}})
    group.on_start(None)  # type: ignore[arg-type]
    group.on_step(1)
    group.on_row({"step": 1})
    state = group.state_dict()
    group.on_stop(0)
    return state


@pytest.mark.parametrize("method", METHODS)
def test_a_failure_is_said_once_with_its_reason_and_stops_nothing(
    method: str, caplog: pytest.LogCaptureFixture
) -> None:
    good = Counting()
    drive(CallbackGroup({"bad": Counting(method), "good": good}))
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == [
        "callback bad failed (ValueError: no room for it) and is switched off; training continues"
    ]
    assert good.rows == 8


@pytest.mark.parametrize("method", METHODS)
def test_what_a_failed_callback_knew_stays_in_the_checkpoints(method: str) -> None:
    state = drive(CallbackGroup({"bad": Counting(method), "good": Counting()}))
    assert state == {"bad": {"rows": 6 if method == "on_stop" else 5}, "good": {"rows": 8}}


def test_an_error_of_moe_train_s_own_ends_the_run() -> None:
    with pytest.raises(RunError):
        drive(CallbackGroup({"bad": Counting("on_row", RunError("unrecorded"))}))
