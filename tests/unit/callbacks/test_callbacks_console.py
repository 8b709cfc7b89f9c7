"""What the terminal shows."""

import contextlib
import io
import os
import pty
from pathlib import Path

import pytest

from moe_train.callbacks.callback import RunInfo
from moe_train.callbacks.console import Console, duration, event_line, training_line
from moe_train.config.schema import Recipe

ROW = {
    "step": 40,
    "attempt": 1,
    "loss": 5.2134,
    "losses": {"balance": 1.01},
    "lr": 1e-3,
    "grad_norm": 1.25,
    "tokens_seen": 40 * 1024,
    "tokens_per_second": 12288.0,
    "memory_bytes": 3 * 2**29,
    "moe": {
        "load": [[10, 20], [15, 15]],
        "dropped": [1, 0],
        "cv": [0.12, 0.3],
        "max_violation": [0.3, 0.0],
        "entropy": [0.6, 0.6],
        "dead_fraction": [0.0, 0.5],
        "drop_rate": [0.042, 0.0],
    },
}


@pytest.fixture
def info(tmp_path: Path) -> RunInfo:
    return RunInfo(
        recipe=Recipe(name="small", steps=1000),
        run_dir=tmp_path,
        attempt=2,
        start_step=30,
        workers=4,
        total_parameters=11_540_736,
        active_parameters=4_200_704,
        moe_layers=(1, 3),
    )


def test_a_training_row_is_one_plain_line() -> None:
    assert training_line(ROW, 1000) == (
        "step 40/1000  loss 5.213  lr 0.001  gradient norm 1.25  12,288 tokens/s  1.50 GiB  left 1m20s  "
        "cv 0.12 0.30  dead 0% 50%  dropped 2.1%"
    )


def test_what_is_not_finite_or_missing_is_a_dash() -> None:
    row = {"step": 1, "loss": None, "grad_norm": float("nan"), "tokens_per_second": None}
    assert training_line(row, 10) == "step 1/10  loss -  lr -  gradient norm -  - tokens/s  - GiB  left -"


def test_validation_and_events_are_lines() -> None:
    assert event_line({"step": 100, "validation_loss": 4.25}) == "step 100  validation loss 4.2500"
    assert event_line({"event": "checkpoint", "step": 100, "seconds": 2}) == "step 100  checkpoint  seconds=2"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.4, "59s"), (80, "1m20s"), (7500, "2h05m"), (273600, "3d04h")]
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_without_a_terminal_nothing_is_drawn_wrapped_or_coloured(info: RunInfo) -> None:
    stream = io.StringIO()
    console = Console(stream)
    console.on_start(info)
    console.on_row({**ROW, "moe": None})
    console.on_row({"step": 40, "event": "note", "text": "[bold]" + "x" * 200})
    console.on_stop(0)
    lines = stream.getvalue().splitlines()
    assert lines[0] == (
        "small: 11,540,736 parameters, 4,200,704 active; 4 workers; attempt 2, from step 30; "
        + str(info.run_dir)
    )
    assert (
        lines[1]
        == "step 40/1000  loss 5.213  lr 0.001  gradient norm 1.25  12,288 tokens/s  1.50 GiB  left 1m20s"
    )
    assert lines[2].endswith("[bold]" + "x" * 200)
    assert "\x1b" not in stream.getvalue()


def test_the_end_says_where_to_look_next(info: RunInfo) -> None:
    stream = io.StringIO()
    console = Console(stream)
    console.on_start(info)
    console.on_stop(75)
    text = stream.getvalue()
    assert "stopped and saved" in text
    assert f"moe-train monitor {info.run_dir} --html" in text
    assert f"moe-train ckpt ls {info.run_dir}" in text


def written_to(master: int) -> str:
    """All that was written to a terminal whose other end is closed; one read may return a part of it."""
    parts = []
    with contextlib.suppress(OSError):  # how Linux says that there is no more
        while part := os.read(master, 65536):
            parts.append(part)
    os.close(master)
    return b"".join(parts).decode()


def test_on_a_terminal_a_live_view_shows_every_moe_layer(info: RunInfo) -> None:
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as stream:
        console = Console(stream)
        console.on_start(info)
        console.on_row(ROW)
        console.on_stop(0)
    seen = written_to(master)
    assert "40/1000" in seen
    assert "gradient norm 1.25" in seen
    assert "lr 0.001" in seen
    assert "1.50 GiB" in seen
    assert "MoE layer" in seen
    assert "50%" in seen
    assert "4.2%" in seen
