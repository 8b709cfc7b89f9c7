"""Torn and damaged lines, and which rows count after kills and resumes."""

import logging
import os
from pathlib import Path
from typing import Any

import pytest

from moe_train.errors import RunError
from moe_train.monitor.rows import current_rows, read_rows


def train(step: int, attempt: int, loss: float = 1.0) -> dict[str, Any]:
    return {"step": step, "attempt": attempt, "loss": loss}


def validation(step: int, attempt: int) -> dict[str, Any]:
    return {"step": step, "attempt": attempt, "validation_loss": 2.0}


def event(step: int, attempt: int, name: str) -> dict[str, Any]:
    return {"step": step, "attempt": attempt, "event": name}


def test_a_torn_tail_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_rows(path) == [{"step": 1}, {"step": 2}]


def test_a_last_line_without_its_newline_is_still_being_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}')
    assert read_rows(path) == [{"step": 1}]


def test_a_damaged_line_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\x00\x00\xff\n[3]\n{"step": 4}\n')
    with caplog.at_level(logging.WARNING):
        assert read_rows(path) == [{"step": 1}, {"step": 4}]
    assert "2 of 4 lines are damaged" in caplog.text


def test_a_run_without_rows_has_none(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "metrics.jsonl") == []


def test_a_pipe_has_no_rows_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "metrics.jsonl")
    assert read_rows(tmp_path / "metrics.jsonl") == []


def test_an_unreadable_file_is_a_named_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be read"):
        read_rows(tmp_path)


def test_one_attempt_counts_whole_and_in_order_of_steps() -> None:
    rows = [validation(0, 1), train(10, 1), train(20, 1), validation(20, 1)]
    assert current_rows(rows) == rows


def test_a_rollback_takes_back_what_the_attempt_wrote_before_it() -> None:
    """Steps 30 and 40 are made again; the run then ends at 30."""
    old = [
        validation(0, 1),
        train(10, 1),
        train(20, 1),
        validation(20, 1),
        train(30, 1, 9.0),
        train(40, 1, 9.0),
    ]
    rows = current_rows([*old, event(20, 1, "rollback"), train(30, 1, 1.0)])
    assert [row for row in rows if "event" not in row] == [*old[:4], train(30, 1, 1.0)]


def test_a_rollback_to_a_step_of_an_earlier_attempt_takes_back_that_ones_rows_too() -> None:
    rows = [train(10, 1), train(20, 1), event(20, 2, "resume"), train(30, 2), event(10, 2, "rollback")]
    assert [row for row in current_rows(rows) if "event" not in row] == [train(10, 1)]


def test_a_later_attempt_replaces_what_it_repeats() -> None:
    rows = [train(10, 1, 5.0), train(20, 1, 4.0), train(20, 2, 4.5), train(30, 2, 3.0)]
    assert [(row["step"], row["loss"]) for row in current_rows(rows)] == [(10, 5.0), (20, 4.5), (30, 3.0)]


def test_what_was_rolled_back_does_not_count_before_it_is_reached_again() -> None:
    rows = [train(step, 1) for step in (10, 20, 30, 40)]
    rows += [event(20, 2, "resume"), train(30, 2, 0.5)]
    assert [row["step"] for row in current_rows(rows) if "loss" in row] == [10, 20, 30]
    assert current_rows(rows)[-1] == train(30, 2, 0.5)


def test_the_row_of_the_checkpoint_itself_stays() -> None:
    rows = [
        train(20, 1),
        event(20, 1, "checkpoint"),
        validation(20, 1),
        event(20, 2, "resume"),
        validation(20, 2),
    ]
    assert current_rows(rows) == [rows[1], rows[3], rows[0], rows[4]]


def test_late_rows_of_a_superseded_attempt_do_not_count() -> None:
    rows = [train(10, 1), event(10, 2, "resume"), train(20, 2, 0.5), train(20, 1), train(30, 1)]
    assert [row for row in current_rows(rows) if "loss" in row] == [train(10, 1), train(20, 2, 0.5)]


def test_a_row_that_names_no_attempt_belongs_to_the_one_before_it() -> None:
    rows = [train(10, 1), event(10, 2, "resume"), train(20, 2), {"step": 20, "validation_loss": 1.0}]
    assert current_rows(rows)[-1] == {"step": 20, "validation_loss": 1.0}
