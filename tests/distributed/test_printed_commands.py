"""The commands that a run on several workers prints are pasted into a shell, and work."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fresh_cache import fresh_cache
from small_run import RECIPE, write_corpus

from moe_train.monitor.run import read_run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a recipe, and `moe-train` in a folder of programs."""
    path = tmp_path_factory.mktemp("printed")
    write_corpus(path / "corpus")
    (path / "small.yaml").write_text(RECIPE.format(corpus="corpus"))
    (path / "bin").mkdir()
    program = path / "bin/moe-train"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m moe_train.cli "$@"\n')
    program.chmod(0o755)
    return path


def shell(folder: Path, line: str) -> "subprocess.CompletedProcess[str]":
    """Run a line as a person's shell would."""
    environment = {
        **os.environ,
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(str(ROOT / name) for name in (".", "cluster", "kernels")),
        "MOE_TRAIN_CACHE": str(fresh_cache(folder)),
        "XDG_CONFIG_HOME": str(folder),
    }
    return subprocess.run(
        line, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=280
    )


def test_a_run_on_two_workers_is_trained_on_and_resumed_as_it_says(terminal: Path) -> None:
    line = "moe-train run small.yaml --run-dir 'my runs/two' --workers 2 --max-restarts 1 parallel.expert=2 steps=2"
    first = shell(terminal, line)
    assert first.returncode == 0, first.stderr
    again = first.stdout.splitlines()[-1].partition("train on:")[2].strip()
    assert again.endswith("--workers 2 --max-restarts 1 steps=4")
    second = shell(terminal, again)
    assert second.returncode == 0, second.stderr
    run = read_run(terminal / "my runs/two")
    assert (run.state, run.workers, run.training[-1]["step"]) == ("finished", 2, 4)

    resumed = shell(terminal, "moe-train resume 'my runs/two' steps=8 --dry-run")
    assert resumed.returncode == 0, resumed.stderr
    assert "--workers 2" in resumed.stdout
    wrong = shell(terminal, "moe-train resume 'my runs/two' steps=8 --workers-per-node 1")
    assert wrong.returncode == 2
    assert "--nodes times --workers-per-node" in wrong.stderr
