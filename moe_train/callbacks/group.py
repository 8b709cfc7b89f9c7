"""All callbacks of a run as one: rank 0 has them, other ranks have none.

A callback that fails is dropped with a message and training continues; only what moe-train itself raises on purpose,
such as a metrics.jsonl that cannot be written, ends the run. The last state of one that was dropped stays in the
checkpoints, so that a resume gives it back.
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
        """See Callback."""
        self._each(lambda callback: callback.on_start(info))

    def on_step(self, step: int) -> None:
        """See Callback."""
        self._each(lambda callback: callback.on_step(step))

    def on_row(self, row: Row) -> None:
        """See Callback."""
        self._each(lambda callback: callback.on_row(row))

    def on_stop(self, exit_code: int) -> None:
        """See Callback."""
        self._each(lambda callback: callback.on_stop(exit_code))

    def state_dict(self) -> dict[str, Any]:
        """The state of each callback by name."""
        self._each_by_name(lambda name, callback: self._states.update({name: callback.state_dict()}))
        return dict(self._states)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Give each callback its own state back; one that is new to the run starts without."""
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
    """The callback that an installed package offers by this name."""
    made = make_callback(name)
    if not isinstance(made, Callback):
        raise RecipeError(
            f"monitor.callbacks={name}: its package makes a {type(made).__name__}, not a Callback; derive its class "
            "from moe_train.callbacks.callback.Callback, or leave it out"
        )
    return made
