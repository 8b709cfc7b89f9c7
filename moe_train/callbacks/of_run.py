"""Makes the callbacks of a run: moe-train's own, and those of installed packages that its recipe names."""

from moe_train.callbacks.callback import Callback
from moe_train.callbacks.console import Console
from moe_train.callbacks.group import CallbackGroup, offered_callback
from moe_train.callbacks.jsonl import JsonlSink
from moe_train.callbacks.wandb import WandbSink
from moe_train.config.schema import MonitorConfig


def callbacks_of(monitor: MonitorConfig, is_main: bool) -> CallbackGroup:
    """Returns the callbacks of rank 0, or the empty group of another rank."""
    if not is_main:
        return CallbackGroup({})
    own: dict[str, Callback] = {
        "jsonl": JsonlSink(),
        "wandb": WandbSink(monitor.wandb),
        "console": Console(),
    }
    return CallbackGroup(own | {name: offered_callback(name) for name in monitor.callbacks})
