"""Runs on CUDA against the same runs on the CPU, and runs that go on somewhere else. Skipped without a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


def losses(run_dir: Path, device: str, steps: int) -> list[float]:
    """The tests' tiny recipe trained on `device`, or trained on, to `steps`: the losses of all steps."""
    overrides = [
        f"data.corpus.path={Path(json.__file__).parent}",
        f"job.device={device}",
        f"steps={steps}",
        "log_every=1",
        "optim.lr=0.1",
    ]
    command = [sys.executable, "-m", "moe_train.cli", "run", str(ROOT / "tests/tiny_model.yaml"), "--run-dir"]
    paths = (ROOT, ROOT / "cluster", ROOT / "kernels", os.environ.get("PYTHONPATH", ""))
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "MOE_TRAIN_CACHE": str(run_dir.parent / "cache"),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }
    ended = subprocess.run(
        [*command, str(run_dir), *overrides], env=environment, capture_output=True, text=True, timeout=200
    )
    assert ended.returncode == 0, ended.stderr
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def test_a_gpu_gives_the_losses_of_the_cpu(tmp_path: Path) -> None:
    assert losses(tmp_path / "gpu", "cuda", 5) == pytest.approx(losses(tmp_path / "cpu", "cpu", 5), rel=1e-3)


@pytest.mark.parametrize(("first", "then"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_run_goes_on_on_the_other_device(tmp_path: Path, first: str, then: str) -> None:
    losses(tmp_path / "run", first, 3)
    assert losses(tmp_path / "run", then, 6) == pytest.approx(losses(tmp_path / "whole", first, 6), rel=1e-3)


def test_a_resume_on_a_gpu_is_exact(tmp_path: Path) -> None:
    losses(tmp_path / "run", "cuda", 3)
    assert losses(tmp_path / "run", "cuda", 6) == losses(tmp_path / "whole", "cuda", 6)
