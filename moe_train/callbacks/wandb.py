"""Sends the rows to Weights & Biases: online, offline, or not at all. No other file imports wandb.

The run must not depend on it: without a key or a network the rows go to W&B's offline folder, and after a failed W&B
call nothing more is sent; either is logged once, and training continues. metrics.jsonl is the authoritative record.
"""

import logging
import math
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from traceback import walk_tb
from typing import Any, Literal

from moe_train.callbacks.callback import Callback, Row, RunInfo
from moe_train.config.load import to_dict
from moe_train.config.wandb import WandbConfig
from moe_train.errors import in_one_line

log = logging.getLogger(__name__)

INIT_TIMEOUT_S = 5.0
"""Without a network, training waits this long before it starts."""
FINISH_TIMEOUT_S = 30.0
"""At the end, the run waits this long for unsent rows; `wandb sync` can send the rest."""
TRANSMIT_INTERVAL_S = 2.0
"""How often rows are sent to the server; W&B's default is 15 s, and a killed run loses that much."""
MAX_LAYERS = 32
"""Maximum number of MoE layers with their own keys; of a deeper model, this many evenly spaced ones are sent."""
WORST = {"cv": max, "max_violation": max, "entropy": min, "dead_fraction": max, "drop_rate": max}
"""Figures sent for every layer, with the function that picks the worst value."""
OTHERS = ("router_entropy", "router_top_probability", "experts_per_token")
"""Figures sent for every layer that have no worst value."""
AXIS = "train/step"
"""The row's step, logged as its own key, since W&B's `_step` neither survives an offline resume nor goes back."""


class WandbSink(Callback):
    """Keeps one W&B run through every resume. Each value is logged against `train/step`, with its attempt."""

    def __init__(self, config: WandbConfig) -> None:
        self._config = config
        self._run_id = secrets.token_hex(4)
        self._run: Any = None
        self._layers: dict[int, str] = {}

    def on_start(self, info: RunInfo) -> None:
        """Starts or resumes the W&B run, waiting about INIT_TIMEOUT_S; raises no error from W&B."""
        if self._config.mode == "disabled":
            return
        import wandb

        self._layers = _shown_layers(info.moe_layers)
        mode = self._config.mode
        with self._contained():
            wandb.setup(wandb.Settings(silent=True))
            if mode == "online":
                mode = self._open_online(wandb, info)
            if mode == "offline":
                self._run = self._init(wandb, info, "offline")
            self._run.define_metric(AXIS)
            self._run.define_metric("*", step_metric=AXIS)

    def on_row(self, row: Row) -> None:
        """Queues the row's figures; W&B sends them from a separate process."""
        if self._run is None or "event" in row:
            return
        with self._contained():
            self._run.log(flatten(row, self._layers))

    def on_stop(self, exit_code: int) -> None:
        """Ends the W&B run, waiting at most FINISH_TIMEOUT_S for unsent rows."""
        if self._run is None:
            return
        with self._contained():
            self._run.finish(exit_code)

    def state_dict(self) -> dict[str, Any]:
        """Returns the id with which a resume continues the same W&B run."""
        return {"run_id": self._run_id}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues the W&B run of `state`."""
        self._run_id = state["run_id"]

    def _open_online(self, wandb: Any, info: RunInfo) -> Literal["online", "offline"]:
        """Opens the run on the server; logs the reason and returns "offline" if that is not possible."""
        try:
            if wandb.login(prompt=False, verify=False):
                self._run = self._init(wandb, info, "online")
                return "online"
            reason = "there is no API key; `wandb login` stores one"
        except Exception as error:
            if not _is_from_wandb(error):
                raise
            reason = in_one_line(error)
            # The failed attempt holds the run id until W&B's service process ends.
            wandb.teardown()
            wandb.setup(wandb.Settings(silent=True))
        log.warning(
            "monitor.wandb.mode=online is not possible (%s), so this attempt is recorded offline in %s; "
            "`wandb sync` sends it later.",
            reason,
            info.run_dir / "wandb",
        )
        return "offline"

    def _init(self, wandb: Any, info: RunInfo, mode: str) -> Any:
        return wandb.init(
            project=self._config.project,
            entity=self._config.entity,
            tags=self._config.tags,
            name=info.recipe.name,
            id=self._run_id,
            # Offline there is no server to look up the run's past on.
            resume="allow" if mode == "online" else None,
            dir=str(info.run_dir),
            mode=mode,
            config={
                **to_dict(info.recipe),
                "workers": info.workers,
                "total_parameters": info.total_parameters,
                "active_parameters": info.active_parameters,
                "attempt": info.attempt,
            },
            allow_val_change=True,
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                init_timeout=INIT_TIMEOUT_S,
                finish_timeout=FINISH_TIMEOUT_S,
                finish_timeout_raises=True,
                x_disable_stats=True,
                x_file_stream_transmit_interval=TRANSMIT_INTERVAL_S,
            ),
        )

    @contextmanager
    def _contained(self) -> Iterator[None]:
        """Turns a failure of W&B into the end of sending instead of the end of training."""
        try:
            yield
        except Exception as error:
            if not _is_from_wandb(error):
                raise
            self._run = None
            log.warning(
                "W&B failed (%s); nothing more is sent to it in this attempt. metrics.jsonl has every row.",
                in_one_line(error),
            )


def flatten(row: Row, layers: Mapping[int, str]) -> dict[str, float]:
    """Flattens a training or validation row into W&B's keys.

    `layers` maps the positions of the layers to send to their names. There is no key per expert: 40 layers of 256
    experts would make 10,240 keys.
    """
    values: dict[str, float] = {AXIS: row["step"]}
    for key, value in row.items():
        if key == "losses":
            values |= {f"train/losses/{name}": loss for name, loss in value.items()}
        elif key == "moe":
            values |= _experts(value, layers)
        elif key == "attempt":
            values[key] = value
        elif key == "validation_loss":
            values["validation/loss"] = value
        elif key != "step":
            values[f"train/{key}"] = value
    return values


def _experts(moe: Mapping[str, Any], layers: Mapping[int, str]) -> dict[str, float]:
    values: dict[str, float] = {}
    for figure, worst in WORST.items():
        if moe[figure]:
            values[f"moe/worst/{figure}"] = worst(moe[figure])
    for figure in (*WORST, *OTHERS):
        # A router without a distribution gets no chart instead of a chart of NaN.
        values |= {
            f"moe/{name}/{figure}": moe[figure][position]
            for position, name in layers.items()
            if not math.isnan(moe[figure][position])
        }
    return values


def _shown_layers(moe_layers: tuple[int, ...]) -> dict[int, str]:
    """Maps positions in the rows' lists to names; of more than MAX_LAYERS, evenly spaced ones from first to last."""
    positions = range(len(moe_layers))
    if len(moe_layers) > MAX_LAYERS:
        last = len(moe_layers) - 1
        shown_positions = sorted({round(number * last / (MAX_LAYERS - 1)) for number in range(MAX_LAYERS)})
        log.info(
            "W&B shows %d of %d MoE layers, and the worst of all.", len(shown_positions), len(moe_layers)
        )
    else:
        shown_positions = list(positions)
    return {position: f"layer_{moe_layers[position]:02d}" for position in shown_positions}


def _is_from_wandb(error: Exception) -> bool:
    """Returns whether an error was raised inside a call of W&B, which also raises other packages' errors."""
    modules = (frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__))
    return isinstance(error, OSError) or any(name.partition(".")[0] == "wandb" for name in modules)
