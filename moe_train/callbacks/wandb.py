"""Sends the rows to Weights & Biases: online, offline, or not at all. The only file that imports wandb.

The run must not depend on it: without a key or a network the rows go to W&B's offline folder, and a W&B call
that fails ends the sending; either is said once, and training goes on. metrics.jsonl stays the truth.
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
"""Without a network, the start of training waits this long."""
FINISH_TIMEOUT_S = 30.0
"""At the end, rows not yet sent are waited for this long; what is left can be sent with `wandb sync`."""
TRANSMIT_INTERVAL_S = 2.0
"""Rows appear on the server this often; W&B's own default is 15 s, which a killed run loses."""
MAX_LAYERS = 32
"""MoE layers with keys of their own; of a deeper model, this many, evenly spaced, and the worst of all."""
WORST = {"cv": max, "max_violation": max, "entropy": min, "dead_fraction": max, "drop_rate": max}
"""Figures sent for every layer, and which value is the worst of them."""
OTHERS = ("router_entropy", "router_top_probability", "experts_per_token")
"""Figures sent for every layer that are not better or worse."""
AXIS = "train/step"
"""W&B's own `_step` neither survives an offline resume nor goes back; this one is the step of the row."""


class WandbSink(Callback):
    """Keeps one W&B run through every resume. Each value is logged against `train/step`, with its attempt."""

    def __init__(self, config: WandbConfig) -> None:
        self._config = config
        self._run_id = secrets.token_hex(4)
        self._run: Any = None
        self._layers: dict[int, str] = {}

    def on_start(self, info: RunInfo) -> None:
        """Begin the W&B run, or go on with it; wait INIT_TIMEOUT_S or so, and raise no error of W&B's."""
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
        """Queue the row's figures; W&B sends them from a process of its own."""
        if self._run is None or "event" in row:
            return
        with self._contained():
            self._run.log(flatten(row, self._layers))

    def on_stop(self, exit_code: int) -> None:
        """End the W&B run, waiting at most FINISH_TIMEOUT_S for rows not yet sent."""
        if self._run is None:
            return
        with self._contained():
            self._run.finish(exit_code)

    def state_dict(self) -> dict[str, Any]:
        """The id that makes a resume go on with the same W&B run."""
        return {"run_id": self._run_id}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the run of `state`."""
        self._run_id = state["run_id"]

    def _open_online(self, wandb: Any, info: RunInfo) -> Literal["online", "offline"]:
        """Open the run on the server; "offline" if that cannot be done, which is then said."""
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
            # Offline there is no past to ask the server for.
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
        """A failure of W&B ends the sending, not the training."""
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
    """A training or validation row as W&B's flat keys.

    `layers` says which of the row's layers to show, by position, and their names. No key per
    expert: 40 layers of 256 experts would be 10,240 of them.
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
        # A router without a distribution has no point, rather than a chart of NaN.
        values |= {
            f"moe/{name}/{figure}": moe[figure][position]
            for position, name in layers.items()
            if not math.isnan(moe[figure][position])
        }
    return values


def _shown_layers(moe_layers: tuple[int, ...]) -> dict[int, str]:
    """Position in the rows' lists -> name; of more than MAX_LAYERS, evenly spaced ones from first to last."""
    positions = range(len(moe_layers))
    if len(moe_layers) > MAX_LAYERS:
        last = len(moe_layers) - 1
        chosen = sorted({round(number * last / (MAX_LAYERS - 1)) for number in range(MAX_LAYERS)})
        log.info("W&B shows %d of %d MoE layers, and the worst of all.", len(chosen), len(moe_layers))
    else:
        chosen = list(positions)
    return {position: f"layer_{moe_layers[position]:02d}" for position in chosen}


def _is_from_wandb(error: Exception) -> bool:
    """Whether an error was raised inside a call of W&B, which also lets errors of other packages through."""
    modules = (frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__))
    return isinstance(error, OSError) or any(name.partition(".")[0] == "wandb" for name in modules)
