"""`python -m moe_train.worker`, as launchers start it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[3]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "cluster")))}


def test_a_worker_minds_signals_before_it_imports_what_takes_seconds():
    code = "import sys, moe_train.worker.__main__; print({'torch', 'omegaconf', 'wandb', 'rich'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


def test_a_worker_that_is_stopped_while_it_starts_ends_at_once(folder, tmp_path):
    run_dir = tmp_path / "run"
    heartbeat = run_dir / "attempts/1/rank-0/heartbeat.json"
    worker = subprocess.Popen(
        [sys.executable, "-m", "moe_train.worker", "small.yaml", "--run-dir", str(run_dir)],
        cwd=folder,
        env={**ENVIRONMENT, "MOE_TRAIN_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not heartbeat.exists():
        assert worker.poll() is None
        time.sleep(0.005)
    worker.send_signal(signal.SIGTERM)
    _, errors = worker.communicate(timeout=60)
    assert worker.returncode == 75, errors
    assert not list((run_dir / "checkpoints").glob("step_*"))


ENDS_SLOWLY = """
import os, signal, sys
from pathlib import Path
from moe_train.worker.process import Process

class Last:  # lives until Python clears its modules, after it has dropped its signal handlers
    def __del__(self, kill=os.kill, pid=os.getpid()):
        kill(pid, signal.SIGTERM)

last = Last()
with Process(Path("run"), attempt=1, rank=0, launcher=os.getppid()):
    sys.exit(75)
"""


def test_a_stop_that_reaches_a_worker_while_it_ends_does_not_change_its_exit_code(tmp_path):
    """One rank is told, all agree and end; the launcher's signal to the others may come later than that."""
    done = subprocess.run([sys.executable, "-c", ENDS_SLOWLY], cwd=tmp_path, env=ENVIRONMENT)
    assert done.returncode == 75


def test_what_a_worker_cannot_use_is_told_in_its_error_file(tmp_path):
    (tmp_path / "small.yaml").write_text("model: {d_modle: 8}\n")
    command = [sys.executable, "-m", "moe_train.worker", "small.yaml", "--run-dir", "run"]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 2
    assert (
        "model.d_modle: there is no such key" in (tmp_path / "run/attempts/1/rank-0/error.json").read_text()
    )
