"""Shows a run to the person watching it: a live view in a terminal, plain lines elsewhere.

The rows are those of metrics.jsonl; a value that is missing or was not finite is shown as `-`.
"""

import atexit
import logging
import sys
from collections.abc import Mapping, Sequence
from shlex import quote
from typing import IO, Any

from rich.console import Console as RichConsole
from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from moe_cluster.contract import DONE, PREEMPTED
from moe_cluster.output import lost_output
from moe_train.callbacks.callback import Callback, Row, RunInfo

log = logging.getLogger(__name__)


class Console(Callback):
    """Shows training rows in place and prints validation and event rows as lines."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        """Writes to `stream`, by default the current sys.stdout."""
        stream = stream or sys.stdout
        self._stream, self._has_reported_loss = stream, False
        self._rich = RichConsole(file=stream, highlight=False)
        self._is_live = stream.isatty()
        self._live: Live | None = None
        self._info: RunInfo

    def on_start(self, info: RunInfo) -> None:
        """Prints a line about the run and opens the live view."""
        self._info = info
        self._print(_headline(info))
        if self._is_live:
            self._live = Live(console=self._rich, refresh_per_second=4)
            self._live.start()
            # After an error on_stop is not called, and a view left open would keep the cursor hidden.
            atexit.register(self._live.stop)

    def on_row(self, row: Row) -> None:
        """Shows one row."""
        steps = self._info.recipe.steps
        if "loss" not in row:
            self._print(event_line(row))
        elif self._live is None:
            self._print(training_line(row, steps))
        else:
            self._live.update(_view(row, steps, self._info.moe_layers))

    def on_stop(self, exit_code: int) -> None:
        """Closes the live view and prints where to look next."""
        if self._live is not None:
            self._live.stop()
            atexit.unregister(self._live.stop)
            self._live = None
        for line in _closing_lines(self._info, exit_code):
            self._print(line)

    def _print(self, line: str) -> None:
        """Prints `line` above the live view without wrapping or markup."""
        self._rich.print(line, markup=False, soft_wrap=True)
        failure = lost_output(self._stream)
        if failure is not None and not self._has_reported_loss:
            self._has_reported_loss = True
            reason = "its reader has gone" if isinstance(failure, BrokenPipeError) else failure.strerror
            log.warning("output is lost (%s); training continues, and metrics.jsonl has every row", reason)


def training_line(row: Row, steps: int) -> str:
    """Formats a training row as one line of plain text."""
    fields = [
        f"step {row['step']}/{steps}",
        f"loss {_number(row['loss'])}",
        *_update_and_speed(row, steps),
    ]
    moe = row.get("moe")
    if moe and moe["cv"]:
        fields.append("cv " + " ".join(_number(value, ".2f") for value in moe["cv"]) + _by_chance(moe))
        fields.append("dead " + " ".join(_number(value, ".0%") for value in moe["dead_fraction"]))
        fields.append(f"dropped {_number(_mean(moe['drop_rate']), '.1%')}")
    return "  ".join(fields)


def _by_chance(moe: Mapping[str, Any]) -> str:
    """Returns the largest CV that chance alone would give a layer, in words."""
    values = [value for value in moe.get("chance_cv", []) if value is not None and value == value]
    return f" (chance {max(values):.2f})" if values else ""


def event_line(row: Row) -> str:
    """Formats a validation row or an event row as one line of plain text."""
    if "validation_loss" in row:
        return f"step {row['step']}  validation loss {_number(row['validation_loss'], '.4f')}"
    if row.get("event") == "alarm":
        told = f"step {row['step']}  {row['severity']}: {row['message']}"
        return "\n    ".join([told, *row["causes"], *row["advice"]])
    if row.get("event") == "alarm_over":
        return f"step {row['step']}  over: {row['detector']}{_places(row)}, seen since step {row['since']}"
    details = [f"{key}={value}" for key, value in row.items() if key not in ("event", "step", "attempt")]
    where = [f"step {row['step']}"] if "step" in row else []
    return "  ".join([*where, str(row["event"]), *details])


def _places(row: Row) -> str:
    """Formats the MoE layers of an alarm, by their order, and its experts."""
    parts = [(name, row[name]) for name in ("layers", "experts") if row[name]]
    return "".join(f", MoE {name} {', '.join(map(str, numbers))}" for name, numbers in parts)


def duration(seconds: float) -> str:
    """Formats a duration in its two largest units: 45s, 1m20s, 2h05m, 3d04h."""
    whole = round(seconds)
    for size, smaller, names in ((86400, 3600, "dh"), (3600, 60, "hm"), (60, 1, "ms")):
        if whole >= size:
            return f"{whole // size}{names[0]}{whole % size // smaller:02d}{names[1]}"
    return f"{whole}s"


def _update_and_speed(row: Row, steps: int) -> list[str]:
    """Formats the learning rate, the gradient norm, the speed, the memory and the time left."""
    return [
        f"lr {_number(row.get('lr'), '.3g')}",
        f"gradient norm {_number(row.get('grad_norm'), '.3g')}",
        f"{_number(row.get('tokens_per_second'), ',.0f')} tokens/s",
        f"{_number(_in_gib(row.get('memory_bytes')), '.2f')} GiB",
        f"left {_time_left(row, steps)}",
    ]


def _in_gib(number: float | None) -> float | None:
    return None if number is None else number / 2**30


def _time_left(row: Row, steps: int) -> str:
    rate = row.get("tokens_per_second")
    if not rate or not row.get("tokens_seen") or not row["step"]:
        return "-"
    tokens_per_step = row["tokens_seen"] / row["step"]
    return duration((steps - row["step"]) * tokens_per_step / rate)


def _view(row: Row, steps: int, layers: Sequence[int]) -> Group:
    progress = Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}")
    )
    progress.add_task("step", total=steps, completed=row["step"])
    numbers = Table.grid(padding=(0, 2))
    figures = [f"loss {_number(row['loss'])}", *_update_and_speed(row, steps)]
    numbers.add_row(*figures[:3])
    numbers.add_row(*figures[3:])
    moe = row.get("moe")
    return Group(progress, numbers, _experts(moe, layers)) if moe and layers else Group(progress, numbers)


def _experts(moe: Mapping[str, Any], layers: Sequence[int]) -> Table:
    table = Table("MoE layer", "load CV", "dead experts", "dropped", box=None, padding=(0, 2))
    columns = (moe["cv"], moe["dead_fraction"], moe["drop_rate"])
    for layer, cv, dead, dropped in zip(layers, *columns, strict=True):
        table.add_row(str(layer), _number(cv, ".2f"), _number(dead, ".0%"), _number(dropped, ".1%"))
    return table


def _headline(info: RunInfo) -> str:
    size = f"{info.total_parameters:,} parameters, {info.active_parameters:,} active"
    start = f"from step {info.start_step}" if info.start_step else "from the start"
    workers = f"{info.workers} worker{'s' if info.workers > 1 else ''}"
    return f"{info.recipe.name}: {size}; {workers}; attempt {info.attempt}, {start}; {info.run_dir}"


def _closing_lines(info: RunInfo, exit_code: int) -> list[str]:
    ends = {DONE: "done", PREEMPTED: "stopped and saved"}
    folder = quote(str(info.run_dir))
    lines = [f"{ends.get(exit_code, 'failed')}; everything is in {info.run_dir}"]
    if info.moe_layers:
        lines.append(
            f"  see the experts:  moe-train monitor {folder} --html {quote(f'{info.run_dir}/experts.html')}"
        )
    lines.append(f"  its checkpoints:  moe-train ckpt ls {folder}")
    return lines


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else None


def _number(value: float | None, form: str = ".3f") -> str:
    """Formats `value` by `form`; `-` if it is missing or NaN (the only value that differs from itself)."""
    return "-" if value is None or value != value else format(value, form)
