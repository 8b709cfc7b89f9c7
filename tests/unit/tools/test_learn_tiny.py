"""The table of what tiny recipes learn: a row of figures from each run's own records, and no run made twice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_run import environment, write_corpus

from moe_kernels.select import choose

ROOT = Path(__file__).resolve().parents[3]
SMALL = (
    "steps=2",
    "data.tokenizer.vocab_size=300",
    "data.global_batch=4",
    "data.validation_sequences=8",
    "optim.schedule.warmup_steps=0",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "text")
    choose("cpu")  # with everybody's cache: in one of its own the run would compile the kernels first
    return tmp_path


def learn(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "cluster"), str(ROOT / "kernels")])
    command = [
        sys.executable,
        str(ROOT / "tools/learn_tiny.py"),
        "--runs",
        str(folder / "runs"),
        "--only",
        "dense/",
    ]
    changes = [*SMALL, f"data.corpus.path={folder / 'text'}"]
    return subprocess.run(
        [*command, *arguments, *changes],
        env=os.environ | environment(folder) | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_a_finished_run_is_a_row_of_the_table_and_is_not_made_again(folder):
    assert "dense/tiny" not in learn(folder, "--table").stdout
    first = learn(folder)
    assert first.returncode == 0, first.stderr
    metrics = folder / "runs/dense-tiny/metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    before, after = [row["validation_loss"] for row in rows if "validation_loss" in row]
    expected = ["`dense/tiny`", "language", "2", f"{before:.3f}", f"{after:.3f}"]
    written = metrics.read_bytes()
    for done in (first, learn(folder), learn(folder, "--table")):
        [row] = [line for line in done.stdout.splitlines() if "dense/tiny`" in line]
        assert [cell.strip() for cell in row.strip("|").split("|")] == expected
    assert metrics.read_bytes() == written


def test_a_run_that_fails_is_named_and_is_no_row(folder):
    done = learn(folder, "model.num_heads=3")
    assert done.returncode == 1
    assert "failed: dense/tiny" in done.stderr
    assert "`dense/tiny`" not in done.stdout
