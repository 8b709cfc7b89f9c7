"""metrics.jsonl: exact, whole after a kill, and never silently missing."""

import json
import logging
import math
import os
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from moe_train.callbacks.callback import RunInfo
from moe_train.callbacks.jsonl import JsonlSink, encode_row
from moe_train.config.schema import Recipe
from moe_train.errors import RunError
from moe_train.monitor.rows import read_rows


def info(run_dir: Path) -> RunInfo:
    return RunInfo(
        recipe=Recipe(),
        run_dir=run_dir,
        attempt=1,
        start_step=0,
        workers=1,
        total_parameters=0,
        active_parameters=0,
        moe_layers=(),
    )


def write(run_dir: Path, *rows: dict[str, Any]) -> None:
    sink = JsonlSink()
    sink.on_start(info(run_dir))
    for row in rows:
        sink.on_row(row)
    sink.on_stop(0)


def test_rows_are_appended_over_attempts(tmp_path: Path) -> None:
    write(tmp_path, {"step": 1}, {"step": 2})
    write(tmp_path, {"step": 3})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step":1}\n{"step":2}\n{"step":3}\n'


def test_floats_read_back_exactly(tmp_path: Path) -> None:
    draw = random.Random(0)
    values = [draw.uniform(-1, 1) * 10.0 ** draw.randrange(-300, 300) for _ in range(500)] + [0.1, 5e-324]
    write(tmp_path, {"step": 1, "values": values})
    assert read_rows(tmp_path / "metrics.jsonl")[0]["values"] == values


def test_nan_and_infinities_become_null_wherever_they_stand() -> None:
    line = encode_row({"loss": math.nan, "moe": {"cv": [1.5, math.inf], "load": [[1], [2]]}, "x": -math.inf})
    assert json.loads(line) == {"loss": None, "moe": {"cv": [1.5, None], "load": [[1], [2]]}, "x": None}


@pytest.mark.parametrize("tail", [b'{"step":2,"loss":1.', b'{"step":2}', b"\x00\x00\n", b"[1]\nnull\n{\n"])
def test_a_torn_tail_is_cut_and_said(tmp_path: Path, tail: bytes, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step":1}\n' + tail)
    with caplog.at_level(logging.WARNING):
        write(tmp_path, {"step": 3})
    assert path.read_bytes() == b'{"step":1}\n{"step":3}\n'
    assert f"removed {len(tail)} bytes" in caplog.text


def test_a_file_that_is_nothing_but_a_torn_line_becomes_empty(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step"')
    write(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_a_sound_file_is_not_touched(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, {"step": 1})
    with caplog.at_level(logging.WARNING):
        write(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b'{"step":1}\n'
    assert not caplog.records


def test_a_row_survives_the_death_of_the_process(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; sys.path[:0] = sys.argv[2:]\n"
        "from pathlib import Path; from test_jsonl import JsonlSink, info\n"
        "sink = JsonlSink(); sink.on_start(info(Path(sys.argv[1])))\n"
        "sink.on_row({'step': 1}); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    folders = [str(Path(__file__).parent), *sys.path]
    process = subprocess.run([sys.executable, "-c", script, str(tmp_path), *folders], check=False)
    assert process.returncode == -signal.SIGKILL
    assert (tmp_path / "metrics.jsonl").read_bytes() == b'{"step":1}\n'


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_disk_stops_the_run_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    sink = JsonlSink()
    sink.on_start(info(tmp_path))
    with pytest.raises(RunError, match=r"cannot be written \(No space left on device\).*free space"):
        sink.on_row({"step": 1})


def test_a_line_that_fits_in_part_is_an_error_and_is_cut_by_the_next_attempt(tmp_path: Path) -> None:
    write(tmp_path, {"step": 1})
    sink = JsonlSink()
    sink.on_start(info(tmp_path))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (15, limits[1]))
        with pytest.raises(RunError, match="cannot be written"):
            sink.on_row({"step": 2, "loss": 0.5})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b'{"step":1}\n{"st'
    write(tmp_path, {"step": 2})
    assert (tmp_path / "metrics.jsonl").read_bytes() == b'{"step":1}\n{"step":2}\n'


def test_a_run_folder_that_cannot_be_written_is_a_named_error(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(RunError, match="cannot be written"):
        JsonlSink().on_start(info(tmp_path))
