"""One launcher and 256 workers on this machine: the first that breaks is named among them, and none is left behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from own_processes import OwnProcesses

pytestmark = pytest.mark.cluster

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WORKERS = 256
WORDS = ("run", "recipe.yaml", "--run-dir", "run", "--workers", str(WORKERS), "--max-restarts", "1")


def test_one_launcher_drives_256_workers_through_a_death_and_a_restart(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "name: many\nsteps: 10\nmodel: {d_model: 256}\n"
        f"data: {{global_batch: {WORKERS}, validation_sequences: {WORKERS}}}\n"
    )
    processes = OwnProcesses()
    done = subprocess.run(
        [sys.executable, str(HERE / "launch_light.py"), *WORDS],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "cluster", HERE))),
            "LIGHT": "171:5:1",
            **processes.environment,
        },
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "rank 171" in done.stderr
    assert "killed by SIGKILL" in done.stderr
    assert "restart 1 of 1" in done.stderr
    second = tmp_path / "run/attempts/2"
    beats = [json.loads(path.read_text()) for path in second.glob("rank-*/heartbeat.json")]
    assert len(beats) == WORKERS
    assert {beat["step"] for beat in beats} == {10}
    assert not list(second.glob("rank-*/error.json"))
    assert processes.living() == []
