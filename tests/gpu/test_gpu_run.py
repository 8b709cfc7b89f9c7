"""A run on CUDA against the same run on the CPU. Without a GPU these tests are skipped; no CI runs them yet."""

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


def losses(folder: Path, device: str) -> list[float]:
    """Five updates of the tests' tiny recipe on `device`, saved and counted."""
    text = Path(json.__file__).parent
    command = [sys.executable, "-m", "moe_train.cli", "run", str(ROOT / "tests/tiny_model.yaml"), "--run-dir"]
    overrides = [f"data.corpus.path={text}", f"job.device={device}", "steps=5", "log_every=1", "optim.lr=0.1"]
    paths = (ROOT, ROOT / "cluster", ROOT / "kernels", os.environ.get("PYTHONPATH", ""))
    path = os.pathsep.join(map(str, paths))
    environment = os.environ | {"PYTHONPATH": path, "MOE_TRAIN_CACHE": str(folder / "cache")}
    ended = subprocess.run(
        [*command, device, *overrides],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert ended.returncode == 0, ended.stderr
    rows = [json.loads(line) for line in (folder / device / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def test_a_gpu_gives_the_losses_of_the_cpu(tmp_path):
    assert losses(tmp_path, "cuda") == pytest.approx(losses(tmp_path, "cpu"), rel=1e-3)
