"""Real training that is killed or asked to stop: resumed, it ends with the same numbers, bitwise.

The fast set stops a run of one worker; the `faults` set kills any process of two workers at random moments.
"""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from launched_run import RECIPE, Run
from own_processes import wait_for


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("faults")
    (path / "small.yaml").write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def uninterrupted(folder: Path) -> Run:
    run = Run(folder, "uninterrupted")
    run.finish()
    return run


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_was_stopped_ends_with_the_same_numbers(
    folder: Path, uninterrupted: Run, number: signal.Signals
) -> None:
    run = Run(folder, number.name)
    process = run.start()
    wait_for(lambda: run.num_rows > 10)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (75 if number == signal.SIGTERM else -number), errors
    run.verify()
    run.finish()
    assert sorted(os.listdir(run.run_dir / "attempts")) == ["1", "2"]
    assert run.numbers() == uninterrupted.numbers()


@pytest.mark.faults
def test_a_killed_worker_is_replaced_and_the_numbers_stay_the_same(folder: Path, uninterrupted: Run) -> None:
    run = Run(folder, "restarted", "--max-restarts", "1")
    process = run.start()
    wait_for(lambda: run.num_rows > 10)
    heartbeat = json.loads((run.run_dir / "attempts/1/rank-0/heartbeat.json").read_text())
    os.kill(heartbeat["pid"], signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "killed by SIGKILL" in errors
    assert run.numbers() == uninterrupted.numbers()


@pytest.mark.faults
@pytest.mark.parametrize("seed", [pytest.param(0, id="representative"), 1, 2, 3])
def test_sigkill_of_any_process_at_random_moments_loses_nothing_that_was_committed(
    folder: Path, seed: int
) -> None:
    layout = ("--workers", "2", "parallel.expert=2")
    reference = Run(folder, "reference", *layout)
    reference.finish()
    chance = random.Random(seed)
    run = Run(folder, f"killed-{seed}", *layout)
    for _ in range(6):
        process = run.start()
        rows = run.num_rows + chance.randrange(1, 12)
        wait_for(lambda rows=rows, process=process: run.num_rows >= rows or process.poll() is not None)
        time.sleep(chance.uniform(0, 0.2))
        living = run.processes.living()
        for pid in chance.sample(living, k=min(1, len(living))):
            os.kill(pid, signal.SIGKILL)
        process.communicate(timeout=120)
        wait_for(lambda: run.processes.living() == [])
        if any((run.run_dir / "checkpoints").glob("step_*")):
            run.verify()
    run.finish()
    assert run.numbers() == reference.numbers()
