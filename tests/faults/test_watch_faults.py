"""Real workers that are stopped, stuck or slowed down: they are named in time, and sound ones are left alone."""

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from launched_run import RECIPE, Run
from own_processes import wait_for

HANG_S = 6
LAYOUT = ("--workers", "2", "parallel.expert=2", f"job.hang_s={HANG_S}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("watch")
    (path / "small.yaml").write_text(RECIPE)
    return path


def findings(run: Run, attempt: int = 1) -> list[dict[str, object]]:
    path = run.run_dir / f"attempts/{attempt}/findings.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def heartbeat(run: Run, rank: int) -> dict[str, Any]:
    return json.loads((run.run_dir / f"attempts/1/rank-{rank}/heartbeat.json").read_text())


def pid_of(run: Run, rank: int) -> int:
    return heartbeat(run, rank)["pid"]


@pytest.mark.faults
@pytest.mark.parametrize("rank", [0, pytest.param(1, id="representative")])
def test_a_stopped_worker_is_named_and_the_run_goes_on_without_it(folder: Path, rank: int) -> None:
    run = Run(folder, f"stopped-{rank}", *LAYOUT, "--max-restarts", "1")
    process = run.start()
    wait_for(lambda: run.num_rows > 4)
    os.kill(pid_of(run, rank), signal.SIGSTOP)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    (hang,) = findings(run)
    assert HANG_S <= hang["seconds"] < 2 * HANG_S
    assert f"rank {rank} on " in str(hang["text"])
    assert f"process {pid_of(run, rank)} is stopped (SIGSTOP); rank {1 - rank} waits for it" in errors
    assert f"moe-train: error: rank {rank} on " in errors
    assert findings(run, attempt=2) == []
    assert "most recent call first" in (run.run_dir / f"attempts/1/rank-{1 - rank}/stacks.txt").read_text()
    collectives = json.loads((run.run_dir / f"attempts/1/rank-{1 - rank}/collectives.json").read_text())
    assert collectives["entries"]
    assert run.processes.living() == []


@pytest.mark.faults
def test_a_worker_that_is_stopped_in_a_validation_is_named_as_soon_as_in_a_step(folder: Path) -> None:
    long = ("steps=200", "validate_every=2", "data.validation_sequences=400", "data.micro_batch=2")
    run = Run(folder, "validating", *LAYOUT, *long)
    process = run.start()
    wait_for(lambda: run.num_rows > 4)
    wait_for(lambda: heartbeat(run, 1)["phase"] == "validating")
    os.kill(pid_of(run, 1), signal.SIGSTOP)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors
    (hang,) = findings(run)
    assert HANG_S <= hang["seconds"] < 2 * HANG_S
    assert f"process {pid_of(run, 1)} is stopped (SIGSTOP); rank 0 waits for it" in errors
    assert heartbeat(run, 0)["phase"] == "validating"


@pytest.mark.faults
def test_a_worker_that_is_stuck_outside_of_a_collective_is_named_with_its_line(folder: Path) -> None:
    """Its record is a pipe that nobody reads: rank 0 is stuck in a write, and alive."""
    run = Run(folder, "stuck", *LAYOUT, "--max-restarts", "1", "log_every=1", "steps=150", "validate_every=0")
    run.run_dir.mkdir()
    os.mkfifo(run.run_dir / "metrics.jsonl")
    process = run.start()
    wait_for(lambda: bool(findings(run)))
    (run.run_dir / "metrics.jsonl").unlink()
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    (hang,) = findings(run)
    assert [suspect["rank"] for suspect in hang["suspects"]] == [0]  # type: ignore[attr-defined]
    assert "does not wait for others; it is at callbacks/jsonl.py:" in errors
    assert "rank 1 waits for it" in errors
    stacks = (run.run_dir / "attempts/1/rank-0/stacks.txt").read_text()
    assert "jsonl.py" in stacks
    assert f"see {run.run_dir}/attempts/1/rank-0/stacks.txt" in errors


@pytest.mark.faults
def test_a_worker_that_is_slowed_down_is_named_once_and_the_run_goes_on(folder: Path) -> None:
    run = Run(folder, "slow", *LAYOUT, "steps=100000", "validate_every=0", "checkpoint.every=0")
    process = run.start()
    wait_for(lambda: run.num_rows > 4)
    slow, ended = pid_of(run, 1), threading.Event()

    def hinder() -> None:
        while not ended.is_set():
            os.kill(slow, signal.SIGSTOP)
            ended.wait(0.45)
            os.kill(slow, signal.SIGCONT)
            ended.wait(0.05)

    thread = threading.Thread(target=hinder)
    thread.start()
    try:
        wait_for(lambda: bool(findings(run)))
        rows = run.num_rows
        wait_for(lambda: run.num_rows > rows + 2)
    finally:
        ended.set()
        thread.join()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    (straggler,) = findings(run)
    assert (straggler["kind"], straggler["rank"]) == ("straggler", 1)
    assert errors.count("is slow") == 1


@pytest.mark.faults
def test_an_ordinary_run_with_validations_and_checkpoints_raises_no_alarm(folder: Path) -> None:
    run = Run(folder, "sound", *LAYOUT, "steps=600", "checkpoint.every=20", "validate_every=40")
    run.finish()
    assert findings(run) == []
    assert not list(run.run_dir.glob("attempts/*/rank-*/stacks.txt"))
