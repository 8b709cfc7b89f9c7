"""How a run stands, as its folder tells."""

import json
from pathlib import Path

import pytest

from moe_train.monitor.run import read_run


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ([], "no rows yet"),
        (["start"], "running, or killed"),
        (["start", "checkpoint", "stopped"], "stopped, can be resumed"),
        (["start", "finished"], "finished"),
        (["start", "not_finite"], "failed"),
    ],
)
def test_the_last_event_says_how_a_run_stands(tmp_path: Path, events: list[str], state: str):
    (tmp_path / "recipe.yaml").write_text("name: x\n")
    rows = [json.dumps({"event": event, "step": 1, "attempt": 1}) + "\n" for event in events]
    (tmp_path / "metrics.jsonl").write_text("".join(rows))
    assert read_run(tmp_path).state == state


def test_a_run_whose_newest_attempt_left_an_error_has_failed(tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text("name: x\n")
    (tmp_path / "metrics.jsonl").write_text('{"event":"start","step":0,"attempt":1}\n')
    error = tmp_path / "attempts" / "1" / "rank-3" / "error.json"
    error.parent.mkdir(parents=True)
    error.write_text("{}")
    assert read_run(tmp_path).state == "failed"
    (tmp_path / "attempts" / "2" / "rank-0").mkdir(parents=True)
    assert read_run(tmp_path).state == "running, or killed"
