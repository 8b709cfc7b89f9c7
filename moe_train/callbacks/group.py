"""Groups all callbacks of a run into one: rank 0 has them, other ranks have none.

A callback that fails is dropped with a message and training continues; only an error that moe-train raises on purpose,
such as a metrics.jsonl that cannot be written, ends the run. The last state of a dropped callback stays in the
checkpoints, so that a resume restores it.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from moe_train.callbacks.callback import Callback, Row, RunInfo
from moe_train.config.plug_ins import make_callback
from moe_train.errors import MoETrainError, RecipeError, in_one_line

log = logging.getLogger(__name__)


class CallbackGroup:
    """Passes every call on to each callback, by name."""

    def __init__(self, callbacks: Mapping[str, Callback]) -> None:
        self._callbacks = dict(callbacks)
        self._states: dict[str, Any] = {}

    def on_start(self, info: RunInfo) -> None:
        """Passes the call on; see Callback."""
        self._each(lambda callback: callback.on_start(info))

    def on_step(self, step: int) -> None:
        """Passes the call on; see Callback."""
        self._each(lambda callback: callback.on_step(step))

    def on_row(self, row: Row) -> None:
        """Passes the call on; see Callback."""
        self._each(lambda callback: callback.on_row(row))

    def on_stop(self, exit_code: int) -> None:
        """Passes the call on; see Callback."""
        self._each(lambda callback: callback.on_stop(exit_code))

    def state_dict(self) -> dict[str, Any]:
        """Returns each callback's state by name."""
        self._each_by_name(lambda name, callback: self._states.update({name: callback.state_dict()}))
        return dict(self._states)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores each callback's state; one that is new to the run starts without."""
        self._states = dict(state)
        self._each_by_name(
            lambda name, callback: callback.load_state_dict(state[name]) if name in state else None
        )

    def _each(self, call: Callable[[Callback], None]) -> None:
        self._each_by_name(lambda _, callback: call(callback))

    def _each_by_name(self, call: Callable[[str, Callback], None]) -> None:
        for name, callback in list(self._callbacks.items()):
            try:
                call(name, callback)
            except MoETrainError:
                raise
            except Exception as error:
                log.exception(
                    "callback %s failed (%s) and is switched off; training continues",
                    name,
                    in_one_line(error),
                )
                del self._callbacks[name]


def offered_callback(name: str) -> Callback:
    """Returns the callback that an installed package offers under this name."""
    callback = make_callback(name)
    if not isinstance(callback, Callback):
        raise RecipeError(
            f"monitor.callbacks={name}: must be a Callback, but its package makes a {type(callback).__name__}; derive "
            "its class from moe_train.callbacks.callback.Callback, or leave it out"
        )
    return callback
